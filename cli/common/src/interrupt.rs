//! Ctrl-C as a flag, for programs that have something to tell before they end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// Status of a program that was interrupted: 128 and the number of SIGINT.
pub const STATUS: u8 = 130;

/// A flag that the first Ctrl-C sets; the second ends the program.
///
/// # Errors
/// The system refuses the handler or the thread that waits for it.
pub fn flag() -> io::Result<Arc<AtomicBool>> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().build()?;
    let mut presses = runtime.block_on(async { signal(SignalKind::interrupt()) })?;
    let flag = Arc::new(AtomicBool::new(false));
    let pressed = flag.clone();
    let wait = move || {
        runtime.block_on(async {
            presses.recv().await;
            pressed.store(true, Ordering::Relaxed);
            presses.recv().await;
            std::process::exit(STATUS.into())
        })
    };
    std::thread::Builder::new()
        .name("ctrl-c".to_owned())
        .spawn(wait)?;
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_first_ctrl_c_is_told_and_ends_nothing() {
        let pressed = flag().unwrap();
        assert!(!pressed.load(Ordering::Relaxed));
        let press = format!("kill -INT {}", std::process::id());
        assert!(
            Command::new("sh")
                .args(["-c", &press])
                .status()
                .unwrap()
                .success()
        );
        while !pressed.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }
}
