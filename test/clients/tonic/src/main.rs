//! tonic asks the service; ../../README.md says what it prints. The messages are written by hand, so that no protoc is needed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio_stream::{iter, StreamExt};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct VerifyRequest {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VerifyResponse {
    #[prost(int32, tag = "1")]
    outcome: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VerifyStreamRequest {
    #[prost(message, optional, tag = "1")]
    request: Option<VerifyRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VerifyStreamResponse {
    #[prost(message, optional, tag = "1")]
    result: Option<VerifyResult>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VerifyResult {
    #[prost(message, optional, tag = "1")]
    response: Option<VerifyResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateRequest {
    #[prost(string, repeated, tag = "2")]
    scopes: Vec<String>,
}

/// A message none of whose fields are looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// google.rpc.Status.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
}

const LANES: usize = 30;
const CALLS: u32 = 300;

#[derive(Clone)]
struct Client {
    channel: Channel,
    key: String,
    service_token: String,
}

fn path(method: &str) -> PathAndQuery {
    format!("/latchkey.v1.ApiKeyService/{method}").parse().unwrap()
}

fn request<T>(message: T, token: &str, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.set_timeout(timeout);
    request
}

const MINUTE: Duration = Duration::from_secs(60);

impl Client {
    async fn grpc(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        Ok(grpc)
    }

    async fn verify(&self) -> Result<i32, Status> {
        let asked = request(VerifyRequest { key: self.key.clone() }, &self.service_token, MINUTE);
        let codec: ProstCodec<VerifyRequest, VerifyResponse> = ProstCodec::default();
        Ok(self.grpc().await?.unary(asked, path("Verify"), codec).await?.into_inner().outcome)
    }

    async fn create(&self, scope: &str, token: &str) -> Result<(), Status> {
        let asked = request(CreateRequest { scopes: vec![scope.to_owned()] }, token, MINUTE);
        let codec: ProstCodec<CreateRequest, Empty> = ProstCodec::default();
        self.grpc().await?.unary(asked, path("Create"), codec).await.map(|_| ())
    }

    async fn watch(&self, timeout: Duration) -> Result<Streaming<Empty>, Status> {
        let codec: ProstCodec<Empty, Empty> = ProstCodec::default();
        let asked = request(Empty {}, &self.service_token, timeout);
        Ok(self.grpc().await?.server_streaming(asked, path("Watch"), codec).await?.into_inner())
    }

    /// The outcomes of three messages.
    async fn verify_stream(&self) -> Result<Vec<String>, Status> {
        let message = VerifyStreamRequest { request: Some(VerifyRequest { key: self.key.clone() }) };
        let codec: ProstCodec<VerifyStreamRequest, VerifyStreamResponse> = ProstCodec::default();
        let asked = request(iter(vec![message; 3]), &self.service_token, MINUTE);
        let mut answers = self.grpc().await?.streaming(asked, path("VerifyStream"), codec).await?.into_inner();
        let mut outcomes = Vec::new();
        while let Some(answer) = answers.message().await? {
            let response = answer.result.and_then(|result| result.response).unwrap_or_default();
            outcomes.push(response.outcome.to_string());
        }
        Ok(outcomes)
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::Unknown => "UNKNOWN",
        _ => "another code",
    }
}

fn reason(status: &Status) -> String {
    let decoded: RpcStatus = prost::Message::decode(status.details()).unwrap_or_default();
    let info = decoded.details.iter().find(|detail| detail.type_url.ends_with("google.rpc.ErrorInfo"));
    let info: ErrorInfo = info.map(|any| prost::Message::decode(any.value.as_slice()).unwrap()).unwrap_or_default();
    info.reason
}

fn is_refused(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(status);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// As JSON has it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn print(row: &str, value: &str) {
    println!("{{{}:{}}}", quoted(row), quoted(value));
}

#[derive(Default)]
struct Counts {
    answered: Cell<u32>,
    refused: Cell<u32>,
    failed: RefCell<BTreeMap<String, u32>>,
    end: Cell<Option<u32>>,
}

async fn lane(client: Client, counts: Rc<Counts>) {
    while counts.end.get().is_none_or(|end| counts.answered.get() < end) {
        let failure = match client.verify().await {
            Ok(1) => {
                counts.answered.set(counts.answered.get() + 1);
                if counts.answered.get() == CALLS {
                    println!("{{\"loaded\":true}}");
                }
                continue;
            }
            Ok(outcome) => format!("outcome {outcome}"),
            Err(status) if is_refused(&status) => {
                counts.refused.set(counts.refused.get() + 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(status) => format!("{}: {}", name(status.code()), status.message()),
        };
        *counts.failed.borrow_mut().entry(failure).or_default() += 1;
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, ca, key, service_token, user_token] = arguments.as_slice() else {
        return Err("usage: latchkey-tonic-client host:port CA KEY SERVICE-TOKEN USER-TOKEN".into());
    };
    let endpoint = if ca == "-" {
        Endpoint::from_shared(format!("http://{address}"))?
    } else {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?));
        Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?
    };
    let client = Client { channel: endpoint.connect_lazy(), key: key.clone(), service_token: service_token.clone() };

    print("verify", &client.verify().await?.to_string());

    let deadline = Duration::from_millis(300);
    let ended = match client.watch(deadline).await {
        Ok(mut watch) => loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break "OK",
                Err(status) => break name(status.code()),
            }
        },
        Err(status) => name(status.code()),
    };
    print("deadline", ended);

    let Err(status) = client.create("no scope", user_token).await else {
        return Err("Create succeeded".into());
    };
    print("details", &format!("{} {}", name(status.code()), reason(&status)));

    print("stream", &client.verify_stream().await?.join(" "));

    // A stream of tonic's is cancelled by dropping it: it has no code.
    let mut watch = client.watch(MINUTE).await?;
    let first = watch.next().await;
    drop(watch);
    client.verify().await?;
    print("cancellation", if matches!(first, Some(Ok(_))) { "CANCELLED" } else { "no message" });

    let counts = Rc::new(Counts::default());
    let local = tokio::task::LocalSet::new();
    for _ in 0..LANES {
        local.spawn_local(lane(client.clone(), counts.clone()));
    }
    let told = counts.clone();
    local.spawn_local(async move {
        let _ = tokio::io::stdin().read_u8().await;
        told.end.set(Some(told.answered.get() + CALLS));
    });
    local.await;
    let failed: Vec<String> =
        counts.failed.borrow().iter().map(|(text, count)| format!("{}:{count}", quoted(text))).collect();
    println!(
        "{{\"answered\":{},\"refused\":{},\"failed\":{{{}}}}}",
        counts.answered.get(),
        counts.refused.get(),
        failed.join(",")
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    run().await?;
    // The thread that reads standard input would be waited for.
    std::process::exit(0)
}
