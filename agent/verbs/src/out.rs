//! Lines to standard output. Nobody who measures waits for who reads.

use crate::system;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use weir_verbs_protocol::{Failure, Line};

/// Lines that may wait: one second's reports of all targets.
const QUEUE: usize = 2 * weir_verbs_protocol::TARGETS_MAX;

#[derive(Debug, Clone)]
pub struct Out {
    queue: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Out {
    /// Starts the thread that prints. The process ends when nobody reads any more.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> std::io::Result<Out> {
        let (queue, lines) = sync_channel::<Line>(QUEUE);
        std::thread::Builder::new()
            .name("out".to_owned())
            .spawn(move || {
                let mut stdout = std::io::stdout().lock();
                for line in lines {
                    let Ok(mut text) = serde_json::to_string(&line) else {
                        continue;
                    };
                    text.push('\n');
                    if stdout.write_all(text.as_bytes()).is_err() || stdout.flush().is_err() {
                        system::end(0);
                    }
                }
            })?;
        Ok(Out {
            queue,
            dropped: Arc::default(),
        })
    }

    pub fn say(&self, line: Line) {
        if self.queue.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn fail(&self, device: Option<&str>, text: impl Into<String>) {
        self.say(Line::Error(Failure {
            device: device.map(str::to_owned),
            text: text.into(),
        }));
    }

    /// Lines that were not printed because nobody read in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
