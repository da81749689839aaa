//! Takes a lock, works under it, renews it meanwhile, and releases it.
//!
//!     rustc take.rs && ./take MOUNT [NAME]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, thread};

fn run(mount: &Path, name: &str) -> Result<(), String> {
    // The open waits in line. Rust opens again by itself when a signal interrupts it, which keeps the place.
    let line = mount.join(format!("take/{name}+30s"));
    let text = fs::read_to_string(&line).map_err(|e| format!("{}: {e}", line.display()))?;
    let token = text.trim();
    let lock = mount.join(format!("tlock/{name}@{token}")); // exists only as long as this very lock is held
    println!("took {name}, token {token}");
    for part in 1..=3 {
        thread::sleep(Duration::from_millis(100)); // in place of work: each part must take less than the timeout
        if !lock.is_dir() {
            return Err(format!("{name} is no longer ours: stopping before harm is done"));
        }
        fs::write(lock.join("timeout"), "30s\n").map_err(|e| format!("cannot renew {name}: {e}"))?;
        println!("part {part} done, renewed");
    }
    // By token: never somebody else's.
    fs::remove_dir(&lock).map_err(|e| format!("cannot release {name}: {e}"))?;
    println!("released {name}");
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    let result = match &args[1..] {
        [mount] => run(Path::new(mount), "example"),
        [mount, name] => run(Path::new(mount), name),
        _ => Err("usage: take MOUNT [NAME]".into()),
    };
    if let Err(why) = result {
        eprintln!("take: {why}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
