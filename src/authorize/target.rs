//! The route table: which request asks for what.

/// What a caller may be allowed to do, as Cedar names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the policy's")]
pub enum Action {
    Chat,
    Complete,
    Embed,
    Infer,
    Metadata,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Complete, Self::Embed, Self::Infer, Self::Metadata];

    /// The name in the policy.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Complete => "complete",
            Self::Embed => "embed",
            Self::Infer => "infer",
            Self::Metadata => "metadata",
        }
    }
}

/// What an Open Inference Protocol request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// `GET /v1/models`.
    Models,
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
        path: String,
        /// The model that declared it.
        model: String,
    },
    /// `GET /v1/receipts/{id}`, with the form that was asked for: `""` or `"cose"`.
    Receipt {
        /// The receipt's id.
        id: uuid::Uuid,
        /// What follows the dot.
        form: &'static str,
    },
}
