//! A microservice: takes GitHub's webhooks over HTTP, checks who sent them, publishes them
//! confirmed, and consumes them itself.
//!
//! ```text
//! WEBHOOK_SECRET=... cargo run --release --example microservice -- --listen 127.0.0.1:8080
//!
//! POST /webhooks   202 when the broker has it, 400 without an id or an event, 401 for a wrong signature, 413 for a body over
//!                  16 MiB, 422 for what no broker takes, 503 to try again
//! GET  /healthz    200 while the process is worth keeping
//! GET  /readyz     200 while everything works, 503 with the reasons
//! GET  /metrics    for Prometheus
//! ```

mod signals;
mod signature;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use actix::prelude::*;
use actix_web::rt::time::timeout;
use actix_web::web::{Bytes, Data, PayloadConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, get, post};
use clap::Parser;
use redeliver::{Delivery, Handled, Message, Publisher, Service};
use serde_json::Value;

use signals::Signals;
use signature::Secret;

/// As much as the subscription's `body_max` takes.
const BODY_MAX: usize = 16 << 20;
/// GitHub gives a webhook up after 10 s and says nothing of why; we say that it did not work before.
const PUBLISH_MAX: Duration = Duration::from_secs(5);

/// Takes GitHub's webhooks and works on them.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// The configuration.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/config/microservice.toml"))]
    config: PathBuf,
}

/// Tells whom it concerns.
struct Notifier;

impl Actor for Notifier {
    type Context = Context<Self>;
}

impl Handler<Delivery<Value>> for Notifier {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, webhook: Delivery<Value>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let repository = webhook.payload.pointer("/repository/full_name");
            let repository = repository.and_then(Value::as_str).unwrap_or("nowhere");
            let event = webhook.kind().unwrap_or("something");
            println!("{event} in {repository}: {}", webhook.id().unwrap_or_default());
            Ok(())
        })
    }
}

/// What every worker of the HTTP server shares.
struct Shared {
    secret: Secret,
    service: Service,
    publisher: Publisher,
    queue: String,
}

#[post("/webhooks")]
async fn receive(request: HttpRequest, body: Bytes, shared: Data<Shared>) -> HttpResponse {
    // An empty one says no more than none.
    let header = |name| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.filter(|value| !value.is_empty())
    };
    if !shared.secret.signed(&body, header("X-Hub-Signature-256")) {
        return HttpResponse::Unauthorized().body("the signature is missing or wrong\n");
    }
    // Without an id a webhook that comes again could not be told from another.
    let (Some(id), Some(event)) = (header("X-GitHub-Delivery"), header("X-GitHub-Event")) else {
        return HttpResponse::BadRequest()
            .body("X-GitHub-Delivery and X-GitHub-Event are needed\n");
    };
    let message = Message::bytes(body)
        .content_type("application/json")
        .to_queue(shared.queue.as_str())
        .id(id)
        .kind(event);
    match timeout(PUBLISH_MAX, shared.publisher.send(message)).await {
        Ok(Ok(_)) => HttpResponse::Accepted().finish(),
        // It would be refused for ever: whoever sent it should not send it again.
        Ok(Err(error)) if error.is_invalid() => {
            HttpResponse::UnprocessableEntity().body(format!("{error}\n"))
        }
        // Not ours before the broker has it; whoever sent it has it still.
        Ok(Err(error)) => HttpResponse::ServiceUnavailable().body(format!("{error}\n")),
        // It may arrive all the same: the delivery that is sent again has the same id, so that a subscription with
        // `idempotency` handles one of them, and any other handler has to.
        Err(_) => {
            HttpResponse::ServiceUnavailable().body("the broker did not confirm it in time\n")
        }
    }
}

#[get("/healthz")]
async fn healthz(shared: Data<Shared>) -> HttpResponse {
    answer(shared.service.health().live, &shared.service)
}

#[get("/readyz")]
async fn readyz(shared: Data<Shared>) -> HttpResponse {
    answer(shared.service.health().ready, &shared.service)
}

fn answer(is_well: bool, service: &Service) -> HttpResponse {
    let mut response = match is_well {
        true => HttpResponse::Ok(),
        false => HttpResponse::ServiceUnavailable(),
    };
    response.json(service.health())
}

#[get("/metrics")]
async fn metrics(shared: Data<Shared>) -> HttpResponse {
    let text = shared.service.metrics().await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    HttpResponse::Ok().content_type(content_type).body(text)
}

#[actix_web::main]
async fn main() -> ExitCode {
    // What lapin and redis log of their connections, redeliver heals, and tells where it cannot.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "info,lapin=off,redis=off".into()))
        .with_writer(std::io::stderr)
        .init();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("microservice: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let secret = Secret::from_environment()?;
    let config = redeliver::config::Config::load(&options.config)?;
    let webhooks = config.subscriptions.get("webhooks");
    let webhooks = webhooks.ok_or("the configuration has no `[subscriptions.webhooks]`")?;
    let queue = webhooks.queue.clone().unwrap_or_default();
    // Ours to heed: the service is stopped after the HTTP server, which still publishes.
    let mut signals = Signals::listen()?;
    let service = Service::builder(config).signals(false).subscribe("webhooks", || Notifier);
    let service = tokio::select! {
        started = service.start() => started?,
        // The broker may be away for as long as `startup_max`. A start that is dropped is undone.
        () = signals.next() => return Ok(()),
    };
    let publisher = service.publisher("main")?;
    let shared = Data::new(Shared { secret, service: service.clone(), publisher, queue });

    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(PayloadConfig::new(BODY_MAX))
            .service((receive, healthz, readyz, metrics))
    });
    let server = server.bind(&options.listen)?;
    for address in server.addrs() {
        println!("listening on http://{address}");
    }
    let server = server.disable_signals().run();
    actix_web::rt::spawn(signals.stop(server.handle()));
    server.await?;
    let left = service.stop().await.left;
    println!("stopped, {left} handlers left");
    Ok(())
}
