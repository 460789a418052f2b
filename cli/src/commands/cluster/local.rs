//! `rowmill cluster up` and `down`: schedulers and executors on this machine, each a process of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rowmill::Diagnostics;
use rowmill_cluster::{Cluster, ConnectError};
use rowmill_wire::name::check_class;
use rustix::process::Signal;

use super::processes::{Record, Started, prepare, scheduler_name};
use super::{connection, environment, show, token, usage};
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

/// How long a cluster may take to come up.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);
/// What a process may take to end after it was killed.
const KILL: Duration = Duration::from_secs(5);

/// The folder of the cluster on this machine.
pub(super) fn folder(given: Option<&Path>, settings: &Settings) -> PathBuf {
    let folder = given.map_or_else(|| settings.state_dir().join("cluster"), Path::to_owned);
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Executors to start: their classes (`cpu`, or `cpu+io` for one that serves both) and how many.
type Wanted = Vec<(String, u32)>;

/// Reads `cpu=2,io=1`.
fn wanted(text: &str) -> Result<Wanted, Diagnostics> {
    let help = "write --executors cpu=2,io=1; `cpu+io=1` is one executor that serves both";
    let mut wanted = Wanted::new();
    for part in text.split(',') {
        let (classes, many) = part.split_once('=').unwrap_or((part, "1"));
        for class in classes.split('+') {
            check_class(class).map_err(|error| usage(error.to_string(), help))?;
        }
        let many = many.parse::<u32>().ok().filter(|many| (1..=256).contains(many));
        let many = many.ok_or_else(|| usage(format!("`{part}` is no number of executors"), help))?;
        wanted.push((classes.to_owned(), many));
    }
    Ok(wanted)
}

/// The classes of an executor: those that are said, and `memory` and `io` for one that serves `cpu`, where none is said
/// to serve them: on one machine all have the same memory and the same network.
fn served<'a>(classes: &'a str, wanted: &Wanted) -> Vec<&'a str> {
    let said =
        |wanted_class: &str| wanted.iter().any(|(classes, _)| classes.split('+').any(|class| class == wanted_class));
    let mut served: Vec<&str> = classes.split('+').collect();
    if served.contains(&"cpu") {
        served.extend(["memory", "io"].into_iter().filter(|class| !said(class)));
    }
    served
}

pub(crate) async fn up(
    executors: Option<&str>,
    slots: Option<u32>,
    port: u16,
    standby: Option<u32>,
    given: Option<&Path>,
    settings: &Settings,
) -> u8 {
    match try_up(executors, slots, port, standby, given, settings).await {
        Ok(code) => code,
        Err(reports) => failure(&reports, settings.is_json(), settings.is_colored()),
    }
}

async fn try_up(
    executors: Option<&str>,
    slots: Option<u32>,
    port: u16,
    standby: Option<u32>,
    given: Option<&Path>,
    settings: &Settings,
) -> Result<u8, Diagnostics> {
    let wanted = executors.map(wanted).transpose()?;
    if slots == Some(0) {
        return Err(usage("an executor without slots runs nothing", "give --slots 1 or more"));
    }
    let folder = folder(given, settings);
    prepare(&folder)?;
    let mut record = match Record::read(&folder)? {
        Some(record) if standby.is_some_and(|asked| asked as usize != record.standbys.len()) => {
            // Executors were told the addresses of those that there are.
            let message = format!("the cluster was started with --standby {}", record.standbys.len());
            return Err(usage(message, "stop it first: `rowmill cluster down`"));
        }
        Some(record) => record,
        None => {
            let mut addresses = free_addresses(port, standby.unwrap_or(0))?.into_iter();
            let address = addresses.next().unwrap_or_default();
            Record { address, standbys: addresses.collect(), folder, processes: Vec::new() }
        }
    };
    let token_file = record.token_file();
    let common = |name: &str| {
        let own = [name.to_owned(), "--token-file".to_owned(), token_file.display().to_string()];
        own.into_iter().chain(settings.inherited().iter().cloned()).collect::<Vec<String>>()
    };
    let lives = |record: &Record, name: &str| record.processes.iter().any(|own| own.name == name && own.lives());
    for (number, address) in record.schedulers().into_iter().enumerate() {
        let name = scheduler_name(number);
        if lives(&record, &name) {
            continue;
        }
        let mut arguments = common("scheduler");
        arguments.extend(["--listen".to_owned(), address]);
        if !record.standbys.is_empty() && settings.config().cluster.store.is_none() {
            arguments.extend(["--store".to_owned(), record.store_file().display().to_string()]);
        }
        record.start(&name, arguments, None)?;
    }
    let known = record.processes.iter().any(|process| !process.is_scheduler());
    if known && wanted.is_none() {
        // As they were.
        let dead = record.processes.iter().filter(|process| !process.is_scheduler() && !process.lives());
        for process in dead.cloned().collect::<Vec<_>>() {
            record.start(&process.name, process.arguments, process.memory_bytes)?;
        }
    }
    let wanted = wanted.unwrap_or_else(|| if known { Wanted::new() } else { vec![("cpu".to_owned(), 1)] });
    let total: u32 = wanted.iter().map(|(_, many)| many).sum();
    let cores = u32::try_from(rowmill::options::cores()).unwrap_or(1);
    let slots = slots.unwrap_or_else(|| (cores / total.max(1)).max(1));
    // One machine's memory, shared out.
    let memory_bytes = settings.session_options()?.memory_bytes.map(|bytes| (bytes / u64::from(total.max(1))).max(1));
    for (classes, many) in &wanted {
        for number in 1..=*many {
            let name = format!("{classes}-{number}");
            if lives(&record, &name) {
                continue;
            }
            let mut arguments = common("executor");
            for class in served(classes, &wanted) {
                arguments.extend(["--class".to_owned(), class.to_owned()]);
            }
            let work_dir = record.folder.join("work").join(&name).display().to_string();
            arguments.extend(["--slots".to_owned(), slots.to_string(), "--work-dir".to_owned(), work_dir]);
            arguments.extend(["--scheduler".to_owned(), record.schedulers().join(",")]);
            record.start(&name, arguments, memory_bytes)?;
        }
    }
    if known && !wanted.is_empty() {
        // What ended and is not asked for any more.
        let asked = |name: &str| {
            name.rsplit_once('-').is_some_and(|(classes, number)| {
                let number = number.parse::<u32>().unwrap_or(u32::MAX);
                wanted.iter().any(|(own, many)| own == classes && number <= *many)
            })
        };
        record.processes.retain(|process| process.is_scheduler() || process.lives() || asked(&process.name));
        record.write()?;
    }
    await_health(&record, settings).await?;
    let address = record.schedulers().join(",");
    if settings.is_json() {
        println!("{}", serde_json::json!({"address": address, "token_file": token_file}));
    } else {
        println!("the cluster is up on {address}");
        let named = match given {
            None => "local".to_owned(),
            Some(_) => format!("{address} --token-file {}", token_file.display()),
        };
        println!("run something on it: rowmill run --cluster {named} WORKFLOW");
    }
    Ok(exit::SUCCESS)
}

/// Addresses of this machine: the first with the port that is asked for, or a free one for 0; the others with free ones.
fn free_addresses(port: u16, more: u32) -> Result<Vec<String>, Diagnostics> {
    // All of them are held until all are chosen, so that none is chosen twice.
    let mut listeners = Vec::new();
    for port in std::iter::once(port).chain((0..more).map(|_| 0)) {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(|error| {
            let message = format!("port {port} cannot be used: {error}");
            environment("RM0704", message, "give another with --port, or --port 0")
        })?;
        listeners.push(listener);
    }
    let addresses = listeners.iter().map(|listener| listener.local_addr().map(|address| address.to_string()));
    addresses.collect::<Result<_, _>>().map_err(|error| environment("RM0704", format!("no port: {error}"), "try again"))
}

/// Waits until every executor that was started has joined, and every scheduler answers. One that ended says why in its
/// log.
async fn await_health(record: &Record, settings: &Settings) -> Result<(), Diagnostics> {
    let token = token(Some(&record.token_file()))?;
    let cluster = connection(record.schedulers(), token, 1, settings)?;
    let began = Instant::now();
    let executors = record.processes.iter().filter(|process| !process.is_scheduler()).count();
    loop {
        if let Some(dead) = record.processes.iter().find(|process| !process.lives()) {
            let log = record.log(&dead.name);
            let said = show::last_lines(&log, 3);
            let message = format!("{} ended at once: {said}", dead.name);
            return Err(environment("RM0709", message, &format!("its log: {}", log.display())));
        }
        let why = match cluster.status().await {
            Ok(status) if status.executors.len() >= executors => match absent(&cluster, record).await {
                None => return Ok(()),
                Some(why) => why,
            },
            Ok(status) => format!("{} of {executors} executors have joined", status.executors.len()),
            Err(ConnectError::Refused(why)) => {
                return Err(environment("RM0708", why, "another cluster listens there; give another --port"));
            }
            Err(ConnectError::Insecure(why)) => return Err(environment("RM0720", why, "see docs/cluster.md")),
            Err(ConnectError::Silent(why)) => why,
        };
        if began.elapsed() > START {
            let message = format!("the cluster did not come up in {} s: {why}", START.as_secs());
            let help = format!("the logs: {}", record.folder.join("logs").display());
            return Err(environment("RM0709", message, &help));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Why a scheduler that stands by does not answer, if there is one.
async fn absent(cluster: &Cluster, record: &Record) -> Option<String> {
    if record.standbys.is_empty() {
        return None;
    }
    cluster.schedulers().await.into_iter().find_map(|scheduler| scheduler.role.err())
}

pub(crate) async fn down(grace_s: u64, given: Option<&Path>, settings: &Settings) -> u8 {
    match try_down(Duration::from_secs(grace_s), given, settings).await {
        Ok(code) => code,
        Err(reports) => failure(&reports, settings.is_json(), settings.is_colored()),
    }
}

async fn try_down(grace: Duration, given: Option<&Path>, settings: &Settings) -> Result<u8, Diagnostics> {
    let Some(record) = Record::read(&folder(given, settings))? else {
        println!("there is no cluster here");
        return Ok(exit::SUCCESS);
    };
    // Executors first: while they finish what they run, the scheduler takes it.
    let (schedulers, executors): (Vec<_>, Vec<_>) = record.processes.iter().partition(|own| Started::is_scheduler(own));
    for processes in [executors, schedulers] {
        for process in &processes {
            process.signal(Signal::TERM);
            // One that was stopped hears nothing until it goes on.
            process.signal(Signal::CONT);
        }
        let began = Instant::now();
        for process in &processes {
            if !process.gone(grace.saturating_sub(began.elapsed())).await {
                process.signal(Signal::KILL);
                if !process.gone(KILL).await {
                    let message = format!("{} (process {}) does not end", process.name, process.pid);
                    return Err(environment("RM0704", message, "look at what it waits for"));
                }
            }
        }
    }
    record.remove()?;
    println!("the cluster is down; its logs stay in {}", record.folder.join("logs").display());
    Ok(exit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_are_counted_by_class() {
        assert_eq!(wanted("cpu=2,io").unwrap(), vec![("cpu".to_owned(), 2), ("io".to_owned(), 1)]);
        assert_eq!(wanted("cpu+io=1").unwrap(), vec![("cpu+io".to_owned(), 1)]);
        assert_eq!(served("cpu+io", &wanted("cpu+io=1").unwrap()), ["cpu", "io", "memory"]);
        assert_eq!(served("cpu", &wanted("cpu=1,memory=1,io=1").unwrap()), ["cpu"]);
        assert_eq!(served("cpu", &wanted("cpu=1").unwrap()), ["cpu", "memory", "io"]);
        assert_eq!(served("gpu", &wanted("gpu=1").unwrap()), ["gpu"]);
        for wrong in ["", "cpu=0", "CPU=1", "cpu=x", "cpu=1,,io=1", "cpu=100000"] {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }
}
