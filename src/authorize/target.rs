//! The route table: which request asks for what. The matched [`Route`] is what is judged and what is dispatched.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::wire::grpc::SERVICE;

/// What a caller may be allowed to do, as Cedar names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the policy's")]
pub enum Action {
    Chat,
    Complete,
    Embed,
    Infer,
    Metadata,
    Audit,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 6] = [Self::Chat, Self::Complete, Self::Embed, Self::Infer, Self::Metadata, Self::Audit];

    /// The name in the policy.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Complete => "complete",
            Self::Embed => "embed",
            Self::Infer => "infer",
            Self::Metadata => "metadata",
            Self::Audit => "audit",
        }
    }
}

/// What an Open Inference Protocol request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OipAsks {
    /// Whether the server lives.
    Live,
    /// Whether the server is ready.
    Ready,
    /// What the server is.
    Server,
    /// What the model is.
    Model,
    /// Whether the model is ready.
    ModelReady,
    /// What the model says of itself, for people.
    Card,
    /// An inference.
    Infer,
}

/// A matched route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v1/messages`.
    Messages,
    /// `GET /v1/models`, and `GET /v1/models/{id}` with the id.
    Models(Option<String>),
    /// The Open Inference Protocol v2 over HTTP: the question, and the model's name and version where the path has them.
    Oip {
        /// What is asked.
        asks: OipAsks,
        /// The model's name.
        model: Option<String>,
        /// The model's version.
        version: Option<String>,
    },
    /// The same over gRPC; the model's name is in the message.
    Grpc(OipAsks),
    /// A path that the operator declared.
    Raw {
        /// The path.
        path: Arc<str>,
        /// The model that declared it.
        model: Arc<str>,
    },
    /// `GET /v1/receipts/{id}`, with the form that was asked for.
    Receipt {
        /// The receipt's id.
        id: uuid::Uuid,
        /// The form.
        form: ReceiptForm,
    },
}

/// The forms of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptForm {
    /// The JSON view.
    Json,
    /// The signed statement itself, `COSE_Sign1`.
    Statement,
    /// The COSE receipt (RFC 9942).
    Cose,
    /// The transparent statement (RFC 9943).
    Scitt,
    /// The C2SP tlog-proof.
    TlogProof,
    /// The salts that open its commitments.
    Disclosure,
}

impl ReceiptForm {
    /// What follows the id in the URL.
    const SUFFIXES: [(&str, Self); 5] = [
        (".statement", Self::Statement),
        (".cose", Self::Cose),
        (".scitt", Self::Scitt),
        (".tlog-proof", Self::TlogProof),
        (".disclosure", Self::Disclosure),
    ];

    /// The media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json | Self::Disclosure => "application/json",
            Self::Statement => "application/cose; cose-type=\"cose-sign1\"",
            Self::Cose => "application/scitt-receipt+cose",
            Self::Scitt => "application/scitt-statement+cose",
            Self::TlogProof => "text/plain; charset=utf-8",
        }
    }
}

impl Route {
    /// What the route asks to be allowed.
    #[must_use]
    pub const fn action(&self) -> Action {
        match self {
            Self::ChatCompletions | Self::Responses | Self::Messages => Action::Chat,
            Self::Completions => Action::Complete,
            Self::Embeddings => Action::Embed,
            Self::Oip { asks: OipAsks::Infer, .. } | Self::Grpc(OipAsks::Infer) | Self::Raw { .. } => Action::Infer,
            Self::Models(_) | Self::Oip { .. } | Self::Grpc(_) | Self::Receipt { .. } => Action::Metadata,
        }
    }

    /// Whether the body carries the model's name, so that it must be read before anyone can be judged.
    #[must_use]
    pub const fn names_its_model_in_the_body(&self) -> bool {
        match self {
            Self::ChatCompletions | Self::Completions | Self::Responses | Self::Embeddings | Self::Messages | Self::Grpc(_) => true,
            Self::Models(_) | Self::Oip { .. } | Self::Raw { .. } | Self::Receipt { .. } => false,
        }
    }

    /// The model that the path names, and its version where the path has one.
    #[must_use]
    pub fn model_in_the_path(&self) -> Option<(&str, Option<&str>)> {
        match self {
            Self::Oip { model: Some(model), version, .. } => Some((model, version.as_deref())),
            Self::Models(Some(model)) => Some((model, None)),
            Self::Raw { model, .. } => Some((model, None)),
            _ => None,
        }
    }
}

/// Why no route matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// Nothing is served at that path.
    Path,
    /// No method of the gRPC service has that name. The service is not the operator's, so that nothing is told of what is.
    GrpcMethod,
    /// Something is, with these methods, as `Allow` lists them.
    Method(&'static str),
}

/// A row of the table: the route, and its template for logs and spans.
pub type Matched = (Route, Arc<str>);

/// The route table: the fixed routes, and the paths that operators declared.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    raw: HashMap<Arc<str>, Arc<str>>,
    /// The fixed templates, interned so that naming one costs no allocation.
    fixed: Vec<(&'static str, Arc<str>)>,
}

/// What the contract serves, as method and template; the tests walk it.
pub const FIXED: [(&str, &str); 25] = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/messages"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/receipts/{id}"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{model}"),
    ("GET", "/v2/models/{model}/ready"),
    ("GET", "/v2/models/{model}/card"),
    ("POST", "/v2/models/{model}/infer"),
    ("GET", "/v2/models/{model}/versions/{version}"),
    ("GET", "/v2/models/{model}/versions/{version}/ready"),
    ("GET", "/v2/models/{model}/versions/{version}/card"),
    ("POST", "/v2/models/{model}/versions/{version}/infer"),
    ("POST", "/inference.GRPCInferenceService/ServerLive"),
    ("POST", "/inference.GRPCInferenceService/ServerReady"),
    ("POST", "/inference.GRPCInferenceService/ServerMetadata"),
    ("POST", "/inference.GRPCInferenceService/ModelReady"),
    ("POST", "/inference.GRPCInferenceService/ModelMetadata"),
    ("POST", "/inference.GRPCInferenceService/ModelInfer"),
];

/// Prefixes that belong to the contract: an operator's path may not lie under them.
pub const RESERVED: [&str; 3] = ["/v1/", "/v2", "/inference."];

impl Routes {
    /// The fixed routes and `raw`, pairs of a path and the model that declared it.
    pub fn new(raw: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        Self { raw: raw.into_iter().collect(), fixed: FIXED.iter().map(|(_, template)| (*template, Arc::from(*template))).collect() }
    }

    /// The route of a request, and its template.
    ///
    /// # Errors
    /// [`Unmatched`] where nothing is served at `path`, or only with another method. A declared path is found with any method.
    pub fn find(&self, method: &Method, path: &str) -> Result<Matched, Unmatched> {
        if let Some((path, model)) = self.raw.get_key_value(path) {
            // Its method is looked at once the caller may use it: to others the path is not there, whatever the method.
            return Ok((Route::Raw { path: path.clone(), model: model.clone() }, path.clone()));
        }
        let unmatched = || if path.starts_with(SERVICE) { Unmatched::GrpcMethod } else { Unmatched::Path };
        let (route, template) = fixed(path).ok_or_else(unmatched)?;
        let expected = FIXED.iter().find(|(_, known)| *known == template).map_or("POST", |(method, _)| method);
        // What can be got can be asked for without its bytes (RFC 9110, 9.1).
        let allowed = if expected == "GET" { "GET, HEAD" } else { expected };
        if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
            return Err(Unmatched::Method(allowed));
        }
        let template =
            self.fixed.iter().find(|(known, _)| *known == template).map_or_else(|| template.into(), |(_, shared)| shared.clone());
        Ok((route, template))
    }
}

fn fixed(path: &str) -> Option<(Route, &'static str)> {
    match path {
        "/v1/chat/completions" => Some((Route::ChatCompletions, "/v1/chat/completions")),
        "/v1/completions" => Some((Route::Completions, "/v1/completions")),
        "/v1/responses" => Some((Route::Responses, "/v1/responses")),
        "/v1/embeddings" => Some((Route::Embeddings, "/v1/embeddings")),
        "/v1/messages" => Some((Route::Messages, "/v1/messages")),
        "/v1/models" => Some((Route::Models(None), "/v1/models")),
        "/v2" | "/v2/" => Some((oip(OipAsks::Server, None, None), "/v2")),
        "/v2/health/live" => Some((oip(OipAsks::Live, None, None), "/v2/health/live")),
        "/v2/health/ready" => Some((oip(OipAsks::Ready, None, None), "/v2/health/ready")),
        _ => {
            if let Some(rest) = path.strip_prefix("/v2/models/") {
                oip_model(rest)
            } else if let Some(method) = path.strip_prefix(SERVICE) {
                grpc(method)
            } else if let Some(id) = path.strip_prefix("/v1/receipts/") {
                receipt(id)
            } else {
                let id = path.strip_prefix("/v1/models/")?;
                Some((Route::Models(Some(decoded(id)?)), "/v1/models/{model}"))
            }
        }
    }
}

fn oip(asks: OipAsks, model: Option<String>, version: Option<String>) -> Route {
    Route::Oip { asks, model, version }
}

fn oip_model(rest: &str) -> Option<(Route, &'static str)> {
    let parts: Vec<&str> = rest.split('/').collect();
    // What a name may hold is written as endings are: the longest ending counts, and something stands before it.
    let (asks, name, version, template) = match parts.as_slice() {
        [name @ .., "versions", version, "ready"] if !name.is_empty() => {
            (OipAsks::ModelReady, name, Some(version), "/v2/models/{model}/versions/{version}/ready")
        }
        [name @ .., "versions", version, "card"] if !name.is_empty() => {
            (OipAsks::Card, name, Some(version), "/v2/models/{model}/versions/{version}/card")
        }
        [name @ .., "versions", version, "infer"] if !name.is_empty() => {
            (OipAsks::Infer, name, Some(version), "/v2/models/{model}/versions/{version}/infer")
        }
        [name @ .., "versions", version] if !name.is_empty() => {
            (OipAsks::Model, name, Some(version), "/v2/models/{model}/versions/{version}")
        }
        [name @ .., "ready"] if !name.is_empty() => (OipAsks::ModelReady, name, None, "/v2/models/{model}/ready"),
        [name @ .., "card"] if !name.is_empty() => (OipAsks::Card, name, None, "/v2/models/{model}/card"),
        [name @ .., "infer"] if !name.is_empty() => (OipAsks::Infer, name, None, "/v2/models/{model}/infer"),
        name => (OipAsks::Model, name, None, "/v2/models/{model}"),
    };
    // Escapes are undone behind that: an ending is no ending when it is escaped, and a name holds none however it is spelt.
    let model = decoded(&name.join("/")).filter(|name| is_told_from_endings(name))?;
    let version = match version {
        Some(version) => Some(decoded(version).filter(|version| is_version(version))?),
        None => None,
    };
    Some((oip(asks, Some(model), version), template))
}

fn grpc(method: &str) -> Option<(Route, &'static str)> {
    Some(match method {
        "ServerLive" => (Route::Grpc(OipAsks::Live), "/inference.GRPCInferenceService/ServerLive"),
        "ServerReady" => (Route::Grpc(OipAsks::Ready), "/inference.GRPCInferenceService/ServerReady"),
        "ServerMetadata" => (Route::Grpc(OipAsks::Server), "/inference.GRPCInferenceService/ServerMetadata"),
        "ModelReady" => (Route::Grpc(OipAsks::ModelReady), "/inference.GRPCInferenceService/ModelReady"),
        "ModelMetadata" => (Route::Grpc(OipAsks::Model), "/inference.GRPCInferenceService/ModelMetadata"),
        "ModelInfer" => (Route::Grpc(OipAsks::Infer), "/inference.GRPCInferenceService/ModelInfer"),
        _ => return None,
    })
}

fn receipt(id: &str) -> Option<(Route, &'static str)> {
    let formed = ReceiptForm::SUFFIXES.into_iter().find_map(|(suffix, form)| Some((id.strip_suffix(suffix)?, form)));
    let (id, form) = formed.unwrap_or((id, ReceiptForm::Json));
    // Only the hyphenated form that the gateway itself writes: one receipt, one URL.
    let id = uuid::Uuid::try_parse(id).ok().filter(|parsed| id.len() == 36 && parsed.get_version_num() == 7)?;
    Some((Route::Receipt { id, form }, "/v1/receipts/{id}"))
}

/// A name as it stands in a path: its escapes undone once, which makes all its spellings one, and then a name as models may have it.
fn decoded(text: &str) -> Option<String> {
    let name = percent_decode_str(text).decode_utf8().ok()?;
    is_speakable(&name, MAX_NAME).then(|| name.into_owned())
}

/// The longest name of a model, and the longest version: what callers write, what logs and labels show.
pub const MAX_NAME: usize = 128;

/// Whether `text` can stand in a path, a header and a label as it is.
#[must_use]
pub fn is_speakable(text: &str, longest: usize) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\' | b'"'));
    let segments = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    plain && segments && text.len() <= longest
}

/// Whether each route of `/v2/models/{model}` has one reading with this name in it.
#[must_use]
pub fn is_told_from_endings(name: &str) -> bool {
    // What stands first is no ending, for then there would be no name before it.
    name.split('/').skip(1).all(|segment| segment != "versions") && !["/ready", "/card", "/infer"].iter().any(|end| name.ends_with(end))
}

/// Whether `/v2/models/{model}/versions/{version}` has one reading with this version in it.
#[must_use]
pub fn is_version(version: &str) -> bool {
    !version.contains('/')
}

#[cfg(test)]
mod tests;
