//! Who holds a run: how a process describes itself to the store, and whether the one that did is surely dead.
//!
//! A crash leaves a lease that lasts for a while. Where the process that held it ran on this machine, since its last
//! start and in our space of process ids, the kernel can say that it is gone, and nobody has to wait. In every other
//! case the answer is "not known", and the lease decides.

/// Description of this process, for people, with a mark by which [`is_dead`] knows it.
pub fn describe() -> String {
    let pid = std::process::id();
    let host = read("/proc/sys/kernel/hostname").unwrap_or_else(|| "this machine".to_owned());
    match mark(pid) {
        Some(mark) => format!("process {pid} on {host} [{mark}]"),
        None => format!("process {pid} on {host}"),
    }
}

/// Whether the process that described itself so is surely dead.
pub(super) fn is_dead(description: &str) -> bool {
    let parse = || {
        let rest = description.strip_prefix("process ")?;
        let pid: u32 = rest.split(' ').next()?.parse().ok()?;
        let (_, mark) = rest.strip_suffix(']')?.rsplit_once('[')?;
        let (place, started) = mark.rsplit_once('/')?;
        Some((pid, place, started.parse::<u64>().ok()?))
    };
    let Some((pid, place, started)) = parse() else { return false };
    if self::place().as_deref() != Some(place) {
        return false;
    }
    match started_at(pid) {
        Some(now) => now != started,
        // Not there, or there and not to be seen: only the first is death.
        None => is_gone(pid) || is_reaped_late(pid),
    }
}

/// What tells this process from every other one: the place, and the tick at which it started.
fn mark(pid: u32) -> Option<String> {
    Some(format!("{}/{}", place()?, started_at(pid)?))
}

/// The machine since its last start, and the space of process ids in it.
fn place() -> Option<String> {
    let boot = read("/proc/sys/kernel/random/boot_id")?;
    let space = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let space: String = space.to_str()?.chars().filter(char::is_ascii_digit).collect();
    Some(format!("{}/{space}", boot.split('-').next().unwrap_or(&boot)))
}

/// When a process started, in ticks since the machine did; `None` if it is not there or has died.
fn started_at(pid: u32) -> Option<u64> {
    let (state, started) = stat(pid)?;
    (!matches!(state, 'Z' | 'X')).then_some(started)
}

/// Whether there is no process of this id. `/proc` may hide those of other users; the kernel does not.
fn is_gone(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// Whether it has died and only waits for its parent to hear of it.
fn is_reaped_late(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// State and start of a process, from its line in `/proc` (`man 5 proc_pid_stat`: fields 3 and 22).
fn stat(pid: u32) -> Option<(char, u64)> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_dead_when_it_is_gone_and_in_no_other_case() {
        let own = describe();
        assert!(own.contains('['), "{own}");
        assert!(!is_dead(&own));

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mark = mark(child.id()).unwrap();
        let described = format!("process {} on a host [{mark}]", child.id());
        assert!(!is_dead(&described));
        child.kill().unwrap();
        // It has died, and nobody has waited for it yet.
        while started_at(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert!(is_dead(&described));
        child.wait().unwrap();
        assert!(is_dead(&described));

        // Another process has its id now.
        let (place, started) = mark.rsplit_once('/').unwrap();
        let before: u64 = started.parse().unwrap();
        assert!(is_dead(&format!("process {} on a host [{place}/{}]", std::process::id(), before + 1)));
        // Another machine, another start of this one, or a description without a mark: nobody knows.
        assert!(!is_dead(&format!("process {} on a host [0{place}/{started}]", child.id())));
        assert!(!is_dead(&format!("process {}", child.id())));
        assert!(!is_dead(""));
    }
}
