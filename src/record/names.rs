//! Every name that traces and metrics carry, in one place: what the conventions rename is renamed here and nowhere else.
//!
//! HTTP names follow the stable semantic conventions (1.44). The GenAI names follow `semantic-conventions-genai`, which is
//! still in development. What neither knows begins with `portcullis.`.

use http::Method;

use crate::trail::{Assurance, Stop, Which};

/// The instrumentation scope and the service's name.
pub const SERVICE: &str = "portcullis";

/// Span and metric attributes.
pub mod attribute {
    #![expect(missing_docs, reason = "the names are the conventions'")]
    pub const HTTP_METHOD: &str = "http.request.method";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const HTTP_STATUS: &str = "http.response.status_code";
    pub const HTTP_RESPONSE_SIZE: &str = "http.response.body.size";
    pub const HTTP_REQUEST_SIZE: &str = "http.request.body.size";
    pub const URL_SCHEME: &str = "url.scheme";
    pub const PROTOCOL_VERSION: &str = "network.protocol.version";
    pub const SERVER_ADDRESS: &str = "server.address";
    pub const SERVER_PORT: &str = "server.port";
    pub const ERROR_TYPE: &str = "error.type";
    pub const GENAI_OPERATION: &str = "gen_ai.operation.name";
    pub const GENAI_MODEL: &str = "gen_ai.request.model";
    pub const GENAI_PROVIDER: &str = "gen_ai.provider.name";
    pub const GENAI_STREAM: &str = "gen_ai.request.stream";
    pub const GENAI_INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
    pub const GENAI_OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
    pub const GENAI_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
    pub const GENAI_TOKEN_TYPE: &str = "gen_ai.token.type";
    pub const POLICY: &str = "portcullis.policy.digest";
    pub const RECEIPT: &str = "portcullis.receipt.id";
    pub const TENANT: &str = "portcullis.tenant";
    pub const STOP: &str = "portcullis.stop";
    pub const VERDICT: &str = "portcullis.verdict";
    pub const RULE: &str = "portcullis.rule";
    pub const CODE: &str = "portcullis.code";
    pub const COMPLETE: &str = "portcullis.answer.complete";
    pub const MODEL_VERSION: &str = "portcullis.model.version";
    pub const MODEL_DIGEST: &str = "portcullis.model.digest";
    pub const ASSURANCE: &str = "portcullis.model.assurance";
    pub const EVENT: &str = "portcullis.event";
    pub const CAUSE: &str = "portcullis.cause";
    pub const BUILD_VERSION: &str = "portcullis.version";
}

/// Metrics: the OTLP name, and the name under which Prometheus scrapes the same numbers.
/// The unit and `_total` are added to the latter by its encoder.
pub mod metric {
    /// Both names of one metric.
    #[derive(Clone, Copy, Debug)]
    pub struct Metric {
        /// The name in OTLP.
        pub otlp: &'static str,
        /// The name for Prometheus, without unit and `_total`.
        pub prometheus: &'static str,
        /// The unit in OTLP (UCUM).
        pub unit: &'static str,
        /// What it counts.
        pub help: &'static str,
    }

    const fn metric(otlp: &'static str, prometheus: &'static str, unit: &'static str, help: &'static str) -> Metric {
        Metric { otlp, prometheus, unit, help }
    }

    /// How long requests took.
    pub const HTTP_DURATION: Metric = metric(
        "http.server.request.duration",
        "http_server_request_duration",
        "s",
        "From the request's head to the last byte of its answer, per method, route and status",
    );
    /// Requests that have begun and not ended.
    pub const HTTP_ACTIVE: Metric =
        metric("http.server.active_requests", "http_server_active_requests", "{request}", "Requests that have begun and not ended");
    /// Model calls through an upstream.
    pub const CLIENT_DURATION: Metric = metric(
        "gen_ai.client.operation.duration",
        "gen_ai_client_operation_duration",
        "s",
        "Model calls that an upstream answered, per operation and model",
    );
    /// Model calls in this process.
    pub const SERVER_DURATION: Metric = metric(
        "gen_ai.server.request.duration",
        "gen_ai_server_request_duration",
        "s",
        "Model calls that this process answered, per operation and model",
    );
    /// Time to the first chunk of a stream.
    pub const FIRST_CHUNK: Metric = metric(
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai_client_operation_time_to_first_chunk",
        "s",
        "From the call of the model to the first chunk of its streamed answer",
    );
    /// Tokens of one call. OTLP has a histogram, Prometheus the sum.
    pub const TOKENS: Metric = metric(
        "gen_ai.client.token.usage",
        "portcullis_tokens",
        "{token}",
        "Tokens by direction and model, as answers tell or as estimated",
    );
    /// What stops decided.
    pub const DECISIONS: Metric =
        metric("portcullis.decisions", "portcullis_decisions", "{decision}", "What each stop decided; code only where it refused");
    /// Requests that ended in a refusal.
    pub const REFUSED: Metric = metric("portcullis.refused", "portcullis_refused", "{request}", "Refused requests by code");
    /// Requests whose caller was gone before there was an answer.
    pub const ABANDONED: Metric =
        metric("portcullis.abandoned", "portcullis_abandoned", "{request}", "Requests whose caller was gone before an answer was ready");
    /// Answers that broke off.
    pub const INCOMPLETE: Metric =
        metric("portcullis.incomplete", "portcullis_incomplete", "{request}", "Streamed answers that did not come to their own end");
    /// Events of the security log.
    pub const EVENTS: Metric = metric("portcullis.events", "portcullis_events", "{event}", "Events of the security log by name");
    /// Events that found their channel full.
    pub const EVENTS_LOST: Metric =
        metric("portcullis.events.lost", "portcullis_events_lost", "{event}", "Events that found the channel to the security log full");
    /// Lines that could not be written.
    pub const LINES_LOST: Metric = metric(
        "portcullis.security_log.lines_lost",
        "portcullis_security_log_lines_lost",
        "{line}",
        "Lines of the security log that its sink did not take",
    );
    /// Telemetry that did not arrive.
    pub const TELEMETRY_LOST: Metric =
        metric("portcullis.telemetry.lost", "portcullis_telemetry_lost", "{request}", "Requests whose spans were not delivered, by cause");
    /// Comparisons with versions in the shadow. Like all that is read at the scrape it has one name in both worlds.
    pub const SHADOW: Metric =
        metric("portcullis_shadow", "portcullis_shadow", "{call}", "Calls that a version in the shadow was asked too, by what came of it");
    /// How far such a version was off.
    pub const SHADOW_DIFFERENCE: Metric = metric(
        "portcullis_shadow_difference",
        "portcullis_shadow_difference",
        "1",
        "The largest finite difference between a value of an answer and of its shadow",
    );
    /// Files under running models.
    pub const MODEL_CHANGED: Metric =
        metric("portcullis_model_changed", "portcullis_model_changed", "1", "Whether a file of a running model is another now");
    /// Workers that were started in the place of others that fell.
    pub const MODEL_RESTARTS: Metric = metric(
        "portcullis_model_restarts",
        "portcullis_model_restarts",
        "{worker}",
        "Workers of a model that were started in the place of one that fell",
    );
    /// Calls that wait for an engine.
    pub const MODEL_QUEUE_DEPTH: Metric = metric(
        "portcullis_model_queue_depth",
        "portcullis_model_queue_depth",
        "{call}",
        "Calls that wait for a model in this machine, those that run left out",
    );
    /// Connections that did not come to be.
    pub const HANDSHAKES_FAILED: Metric = metric(
        "portcullis_handshakes_failed",
        "portcullis_handshakes_failed",
        "{handshake}",
        "TLS handshakes that failed, by listener and by what it was: the client's certificate, the time, its leaving, or any other reason",
    );
    /// What came to be no request.
    pub const TURNED_AWAY: Metric = metric(
        "portcullis_turned_away",
        "portcullis_turned_away",
        "1",
        "What was turned away at the door, by listener and by why: most of it was no request yet, and has no receipt",
    );
    /// When a certificate ends.
    pub const CERTIFICATE_EXPIRY: Metric = metric(
        "portcullis_certificate_expiry_timestamp_seconds",
        "portcullis_certificate_expiry_timestamp_seconds",
        "s",
        "When the first certificate of a listener's chain ends, in seconds since 1970",
    );
    /// When a revocation list is not believed any more.
    pub const REVOCATIONS_EXPIRY: Metric = metric(
        "portcullis_revocations_expiry_timestamp_seconds",
        "portcullis_revocations_expiry_timestamp_seconds",
        "s",
        "When the first of a listener's revocation lists is to be followed by a newer one, in seconds since 1970",
    );
    /// Issuers whose tokens can be verified.
    pub const KEYS_READY: Metric = metric(
        "portcullis_issuer_keys_ready",
        "portcullis_issuer_keys_ready",
        "1",
        "Whether there are keys of an issuer that may be used now",
    );
    /// Keys that did not come.
    pub const KEYS_FAILED: Metric = metric(
        "portcullis_issuer_keys_failures",
        "portcullis_issuer_keys_failures",
        "1",
        "How often the keys of an issuer could not be fetched or read since its policy is in force",
    );
    /// Replicas that are asked.
    pub const UPSTREAM_UP: Metric = metric(
        "portcullis_upstream_up",
        "portcullis_upstream_up",
        "1",
        "Whether a replica of a model server is asked: 0 while it is left alone after failures, or its health checks fail",
    );
    /// Requests at a replica.
    pub const UPSTREAM_IN_FLIGHT: Metric = metric(
        "portcullis_upstream_requests_in_flight",
        "portcullis_upstream_requests_in_flight",
        "{request}",
        "Requests that are on their way to a replica, wait for room there, or are being answered",
    );
    /// Connections that wait for a request.
    pub const UPSTREAM_IDLE: Metric = metric(
        "portcullis_upstream_idle_connections",
        "portcullis_upstream_idle_connections",
        "{connection}",
        "HTTP/1.1 connections to a replica that are open and not used",
    );
    /// Connections so far.
    pub const UPSTREAM_OPENED: Metric = metric(
        "portcullis_upstream_connections",
        "portcullis_upstream_connections",
        "{connection}",
        "Connections that were opened to a replica",
    );
    /// Where in the log this process began. Held against the log by `portcullis log verify --reconcile`, as are the next six; all of them
    /// are read at the scrape.
    pub const LOG_BEGAN: Metric =
        metric("portcullis_log_began", "portcullis_log_began", "1", "The number of the log's entry with which this process began");
    /// Entries by kind.
    pub const LOG_STATEMENTS: Metric = metric(
        "portcullis_log_statements",
        "portcullis_log_statements",
        "{entry}",
        "Entries of the provenance log since this process began, by kind",
    );
    /// Bytes of answers.
    pub const LOG_BYTES: Metric = metric(
        "portcullis_log_answer_bytes",
        "portcullis_log_answer_bytes",
        "By",
        "Bytes of answers and refusals that the entries of this process are about",
    );
    /// Requests that reached the way.
    pub const LOG_ACCEPTED: Metric = metric(
        "portcullis_log_accepted",
        "portcullis_log_accepted",
        "{request}",
        "Requests that reached the way, with an entry or without",
    );
    /// Requests that were handed on.
    pub const LOG_FORWARDED: Metric =
        metric("portcullis_log_forwarded", "portcullis_log_forwarded", "{request}", "Requests that were handed to a model or an upstream");
    /// Refusals without a receipt.
    pub const LOG_SUPPRESSED: Metric = metric(
        "portcullis_log_suppressed",
        "portcullis_log_suppressed",
        "{request}",
        "Refusals without a receipt, past the allowance of strangers, by code",
    );
    /// Answers without an entry.
    pub const LOG_GAPS: Metric =
        metric("portcullis_log_gaps", "portcullis_log_gaps", "{request}", "Answers that the provenance log does not hold");
    /// Entries under a checkpoint.
    pub const LOG_SIZE: Metric =
        metric("portcullis_log_size", "portcullis_log_size", "{entry}", "Entries of the provenance log that its newest checkpoint covers");
    /// Checkpoints.
    pub const LOG_CHECKPOINTS: Metric =
        metric("portcullis_log_checkpoints", "portcullis_log_checkpoints", "{checkpoint}", "Checkpoints that were published");
    /// Checkpoints that could not be made.
    pub const LOG_CHECKPOINT_FAILURES: Metric = metric(
        "portcullis_log_checkpoint_failures",
        "portcullis_log_checkpoint_failures",
        "1",
        "How often a checkpoint could not be made, for instance since the disk was full",
    );
    /// How often what is too old could not be removed.
    pub const LOG_PRUNE_FAILURES: Metric = metric(
        "portcullis_log_prune_failures",
        "portcullis_log_prune_failures",
        "1",
        "How often entries that are older than prove.keep could not be removed",
    );
    /// Whether the log waits for room.
    pub const LOG_FULL: Metric = metric("portcullis_log_full", "portcullis_log_full", "1", "Whether the log waits for room on its disk");
    /// Entries under a cosigned checkpoint.
    pub const LOG_WITNESSED_SIZE: Metric = metric(
        "portcullis_log_witnessed_size",
        "portcullis_log_witnessed_size",
        "{entry}",
        "Entries that the newest checkpoint covers which a quorum of witnesses has cosigned",
    );
    /// Failures of witnesses.
    pub const LOG_WITNESS_FAILURES: Metric = metric(
        "portcullis_log_witness_failures",
        "portcullis_log_witness_failures",
        "1",
        "How often a witness did not cosign a checkpoint, by witness",
    );
    /// Who this is.
    pub const BUILD: Metric = metric("portcullis.build", "portcullis_build", "1", "The version that is running");
}

/// `http.server.request.duration`, in seconds, as the conventions advise.
pub const HTTP_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Durations of model calls, in seconds: 0.01·2^k up to 81.92.
pub const OPERATION_BUCKETS: [f64; 14] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Time to the first chunk, in seconds.
pub const FIRST_CHUNK_BUCKETS: [f64; 16] = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Tokens of one call: 4^k.
pub const TOKEN_BUCKETS: [f64; 14] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

/// The label of whatever is past a cap or not in a closed list.
pub const OTHER: &str = "other";

/// `http.request.method`: a method of RFC 9110 or PATCH, else `_OTHER`, so that a stranger cannot fill the label.
#[must_use]
pub fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        "CONNECT" => "CONNECT",
        "TRACE" => "TRACE",
        _ => "_OTHER",
    }
}

/// `gen_ai.operation.name` of the policy's action; none for what calls no model.
#[must_use]
pub fn operation(action: &str) -> Option<&'static str> {
    match action {
        "chat" => Some("chat"),
        "complete" => Some("text_completion"),
        "embed" => Some("embeddings"),
        "infer" => Some("infer"),
        _ => None,
    }
}

/// `gen_ai.provider.name`: the upstream's protocol, or this gateway where the model runs here.
#[must_use]
pub fn provider(which: &Which) -> opentelemetry::StringValue {
    match which.assurance {
        Assurance::UpstreamAsserted => which.format.clone().into(),
        Assurance::VerifiedInProcess | Assurance::SignedBundle => SERVICE.into(),
    }
}

/// The position of a stop on the way.
#[must_use]
pub(super) const fn place(stop: Stop) -> usize {
    stop as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::Action;

    #[test]
    fn every_action_on_a_model_but_metadata_is_an_operation() {
        for action in Action::ALL {
            assert_eq!(operation(action.as_str()).is_none(), matches!(action, Action::Metadata | Action::Audit), "{action:?}");
        }
    }

    #[test]
    fn a_stop_stands_where_the_list_has_it() {
        assert!(Stop::ALL.iter().enumerate().all(|(at, stop)| place(*stop) == at));
    }

    #[test]
    fn an_invented_method_is_no_label() {
        assert_eq!(method(&Method::from_bytes(b"X-FILL-ME").unwrap()), "_OTHER");
        assert_eq!(method(&Method::POST), "POST");
    }

    #[test]
    fn buckets_rise() {
        for buckets in [&HTTP_BUCKETS[..], &OPERATION_BUCKETS, &FIRST_CHUNK_BUCKETS, &TOKEN_BUCKETS] {
            assert!(buckets.is_sorted_by(|a, b| a < b));
        }
    }
}
