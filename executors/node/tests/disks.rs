//! Work directories on disks that are full, or run full while tasks run.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rowmill_scheduler::{ExecutorInfo, Scheduler};

use crate::support::{Process, local, on_cluster, options, query, refused, session};

/// A small disk of its own; unmounted when dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with the reason told, where nothing can be mounted here.
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "rowmill-test"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Self { folder }),
            other => {
                println!("skipped: no small disk can be mounted here: {other:?}");
                None
            }
        }
    }

    /// Leaves no room.
    fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[0xa5; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

async fn until(scheduler: &Scheduler, what: &str, holds: impl Fn(&[ExecutorInfo]) -> bool) -> Vec<ExecutorInfo> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let executors = scheduler.executors().await;
        if holds(&executors) {
            return executors;
        }
        assert!(Instant::now() < deadline, "{what}: {executors:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_whose_disk_is_full_takes_no_tasks_until_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else { return };
    let scheduler = Scheduler::start(options()).await.unwrap();
    let _well = Process::start(&scheduler, &["cpu", "io"]);
    let _full = Process::spawn(Process::command(disk.folder.path(), &scheduler, &["cpu", "io"]));
    let context = session().await;
    let sql = query(3);
    let expected = local(&sql).await;
    assert_eq!(on_cluster(&scheduler, &context, &sql).await, expected);
    let ballast = disk.fill();
    // Its tasks fail, and go elsewhere; whoever waits for them hears nothing of it.
    for _ in 0..3 {
        assert_eq!(on_cluster(&scheduler, &context, &sql).await, expected);
    }
    let closed = until(&scheduler, "nobody's disk is full", |all| all.iter().any(|own| own.closed.is_some())).await;
    let reason = closed.iter().find_map(|own| own.closed.clone()).unwrap();
    assert!(reason.contains("work directory") && reason.contains("No space left"), "{reason}");
    assert_eq!(closed.iter().filter(|own| own.closed.is_some()).count(), 1, "{closed:?}");
    std::fs::remove_file(ballast).unwrap();
    until(&scheduler, "it takes no tasks again", |all| all.iter().all(|own| own.closed.is_none())).await;
    assert_eq!(on_cluster(&scheduler, &context, &sql).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_starts_on_a_disk_that_cannot_be_written() {
    let scheduler = Scheduler::start(options()).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    File::create(root.path().join("work")).unwrap();
    let mut roots: Vec<(&Path, &str)> = vec![(root.path(), "exists"), (Path::new("/proc"), "--work-dir")];
    let disk = SmallDisk::mount("64k");
    if let Some(disk) = &disk {
        disk.fill();
        roots.push((disk.folder.path(), "No space left"));
    }
    for (root, says) in roots {
        let (code, said) = refused(Process::command(root, &scheduler, &["cpu"]));
        assert_eq!(code, Some(75), "{said}");
        let named = root.join("work").display().to_string();
        assert!(said.contains(says) && said.contains(&named) && !said.contains("panicked"), "{said}");
    }
    assert!(scheduler.executors().await.is_empty());
}
