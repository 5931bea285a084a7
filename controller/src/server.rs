//! The gRPC side: one task for each agent's stream, which only moves messages.

use crate::driver::{Connected, Handle, MESSAGES_QUEUED_MAX, Outgoing};
use crate::ingest::is_name;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weir_wire::v1::fabric_server::{Fabric, FabricServer};
use weir_wire::v1::{self, agent_message::Body};
use weir_wire::{MESSAGE_BYTES_MAX, version};

/// An agent whose Hello does not come is cut off.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent peer is asked after this long, and given up after as much again: a lease must not
/// outlive its controller unnoticed, nor the other way round.
const KEEPALIVE: Duration = Duration::from_secs(2);

struct Service(Handle);

#[tonic::async_trait]
impl Fabric for Service {
    type StreamStream = ReceiverStream<Outgoing>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let from = request.remote_addr();
        let mut messages = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await;
        let first = first.map_err(|_| {
            Status::deadline_exceeded(format!("no Hello within {HELLO_TIMEOUT:?}"))
        })??;
        let Some(Body::Hello(hello)) = first.and_then(|m| m.body) else {
            return Err(Status::invalid_argument(
                "the first message of a stream must be Hello",
            ));
        };
        let peer = format!("agent {} ({})", hello.node, hello.agent_version);
        version::check(&peer, hello.protocol_major, hello.protocol_minor).map_err(|e| {
            tracing::warn!(?from, "{e}");
            Status::failed_precondition(e.to_string())
        })?;
        if hello.node.is_empty() || hello.node.contains([':', ' ', '/']) || !is_name(&hello.node) {
            return Err(Status::invalid_argument(format!(
                "node {:?} is no name: 1 to 255 bytes without colon, slash, space or control characters",
                hello.node
            )));
        }
        let (out, outgoing) = mpsc::channel(MESSAGES_QUEUED_MAX);
        let welcome = v1::Welcome {
            protocol_major: version::PROTOCOL_MAJOR,
            protocol_minor: version::PROTOCOL_MINOR,
            controller_version: env!("CARGO_PKG_VERSION").into(),
        };
        let welcome = v1::ControllerMessage {
            body: Some(v1::controller_message::Body::Welcome(welcome)),
        };
        out.send(Ok(welcome))
            .await
            .map_err(|_| Status::unavailable("the stream broke"))?;
        let node = hello.node.clone();
        let Connected {
            connection,
            mut given_up,
        } = self
            .0
            .connect(hello, out.clone())
            .await
            .map_err(Status::already_exists)?;
        let handle = self.0.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    message = messages.message() => message,
                    _ = &mut given_up => Ok(None),
                    () = out.closed() => Ok(None),
                };
                match next {
                    Ok(Some(message)) => {
                        if handle
                            .message(connection, node.clone(), message)
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(status) => {
                        tracing::warn!(node, ?from, "stream broke: {}", status.message());
                        // Say why, for instance that a message was too large.
                        if out.try_send(Err(status)).is_err() {
                            tracing::debug!(node, "the agent is gone");
                        }
                        break;
                    }
                }
            }
            if handle.disconnect(connection, node).await.is_err() {
                tracing::debug!("shutting down");
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// Serves agents until the process ends.
///
/// # Errors
/// The address cannot be bound, or the listener broke.
pub async fn serve(listen: SocketAddr, handle: Handle) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|e| {
        anyhow::anyhow!(
            "cannot listen for agents on {listen}: {e}; set listen_grpc to a free address"
        )
    })?;
    tracing::info!("agents connect to {}", listener.local_addr()?);
    serve_on(listener, handle).await
}

/// Serves agents on a socket that is bound already.
///
/// # Errors
/// The listener broke.
pub async fn serve_on(listener: tokio::net::TcpListener, handle: Handle) -> anyhow::Result<()> {
    let service = FabricServer::new(Service(handle)).max_decoding_message_size(MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}
