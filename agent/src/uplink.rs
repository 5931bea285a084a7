//! The stream to the controller: one task that connects, moves messages and connects again.
//!
//! The task owns nothing that must not be lost: samples wait in the main loop's spool, lease
//! reports in its list. They go into a stream only once the controller welcomed it, so a refusal
//! costs nothing. Cancel safety: dropping the task's handle closes the stream.

use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;
use weir_wire::MESSAGE_BYTES_MAX;
use weir_wire::v1::fabric_client::FabricClient;
use weir_wire::v1::{AgentMessage, ControllerMessage};

/// Messages between main loop and stream; more means that the controller does not read.
const QUEUE: usize = 256;
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A controller that says nothing for this long is asked, and given up after as much again.
const KEEPALIVE: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A controller of another version answers the same until someone upgrades one of the two.
const INCOMPATIBLE_RETRY: Duration = Duration::from_secs(30);

/// What the main loop hears of the stream.
#[derive(Debug)]
pub enum Event {
    /// A stream is about to be opened: the Hello is to be sent into it, the rest after the Welcome.
    Opening(mpsc::Sender<AgentMessage>),
    Message(ControllerMessage),
    Closed {
        reason: String,
    },
}

/// Starts the task.
#[must_use]
pub fn spawn(controller: String) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(run(controller, events));
    receiver
}

/// Why a stream ended.
struct Ended {
    reason: String,
    incompatible: bool,
}

impl Ended {
    fn because(reason: String) -> Ended {
        Ended {
            reason,
            incompatible: false,
        }
    }
}

async fn run(controller: String, events: mpsc::Sender<Event>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let started = std::time::Instant::now();
        let Err(Ended {
            reason,
            incompatible,
        }) = stream(&controller, &events).await
        else {
            return;
        };
        if events.send(Event::Closed { reason }).await.is_err() {
            return;
        }
        if started.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
        }
        let pause = if incompatible {
            INCOMPATIBLE_RETRY
        } else {
            backoff
        };
        tokio::time::sleep(pause.mul_f64(jitter())).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Holds one stream; `Ok` when the main loop has gone, otherwise why the stream ended.
async fn stream(controller: &str, events: &mpsc::Sender<Event>) -> Result<(), Ended> {
    let endpoint = Endpoint::from_shared(controller.to_owned())
        .map_err(|e| Ended::because(format!("{controller}: {e}")))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| Ended::because(format!("cannot reach {controller}: {}", root_cause(&e))))?;
    let mut client = FabricClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (sender, outgoing) = mpsc::channel(QUEUE);
    if events.send(Event::Opening(sender)).await.is_err() {
        return Ok(());
    }
    let response = client
        .stream(ReceiverStream::new(outgoing))
        .await
        .map_err(|s| Ended {
            reason: format!("refused: {}", s.message()),
            incompatible: s.code() == Code::FailedPrecondition,
        })?;
    let mut incoming = response.into_inner();
    loop {
        match incoming.message().await {
            Ok(Some(message)) => {
                if events.send(Event::Message(message)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => {
                return Err(Ended::because("the controller closed the stream".into()));
            }
            Err(status) => {
                return Err(Ended::because(format!(
                    "the stream broke: {}",
                    status.message()
                )));
            }
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// 0.5 to 1.5, from the clock's nanoseconds: enough to spread agents that lost their controller together.
fn jitter() -> f64 {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    0.5 + f64::from(nanos % 1_000_000) / 1e6
}
