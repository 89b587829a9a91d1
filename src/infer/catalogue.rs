//! What the gateway says of itself: the models that a caller may see, the server, and receipts.

use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use uuid::Uuid;

use super::model::Model;
use super::tensors::framed;
use super::{Answer, Call, Error, Held, Receipts, whole};
use crate::authorize::{OipAsks, ReceiptForm, Route};
use crate::wire::{grpc as message, oip, openai};

const NAME: &str = "portcullis";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];

/// `GET /v1/models`, or one of them.
pub(super) fn models(call: &Call) -> Answer {
    // The protocol wants a time of creation; the gateway does not know one, and says so with the epoch.
    let listed = |id| openai::Listed { id, created: 0, owned_by: NAME };
    let bytes = match &call.route {
        Route::Models(Some(id)) => openai::model(listed(id)),
        _ => openai::models(call.visible.iter().map(|name| listed(name))),
    };
    whole(StatusCode::OK, "application/json", bytes, Held::default())
}

/// Whether the server lives and is ready, and what it is. A server that is not ready serves nobody, so that it is.
pub(super) fn server(call: &Call) -> Result<Answer, Error> {
    match &call.route {
        Route::Grpc(OipAsks::Live) => framed(&message::ServerLiveResponse { live: true }, Held::default()),
        Route::Grpc(OipAsks::Ready) => framed(&message::ServerReadyResponse { ready: true }, Held::default()),
        Route::Grpc(_) => {
            let extensions = EXTENSIONS.iter().map(|extension| (*extension).to_owned()).collect();
            framed(&message::ServerMetadataResponse { name: NAME.to_owned(), version: VERSION.to_owned(), extensions }, Held::default())
        }
        route => {
            let bytes = match route {
                Route::Oip { asks: OipAsks::Live, .. } => oip::server_live(true),
                Route::Oip { asks: OipAsks::Ready, .. } => oip::server_ready(true),
                _ => oip::server_metadata(NAME, VERSION, &EXTENSIONS),
            };
            Ok(whole(StatusCode::OK, "application/json", bytes, Held::default()))
        }
    }
}

/// What a model says of itself. It is text that others wrote: a browser shows it, and takes nothing in it for a page or a script.
pub(super) fn card(model: &Model) -> Result<Answer, Error> {
    let card = model.card().ok_or(Error::NoCard)?;
    let mut answer = whole(StatusCode::OK, "text/markdown; charset=utf-8", card.clone(), Held::default());
    answer.headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer.headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    Ok(answer)
}

/// A receipt, for the caller it was made for, or an auditor.
pub(super) async fn receipt(call: &Call, id: Uuid, form: ReceiptForm, receipts: &dyn Receipts) -> Result<Answer, Error> {
    let bytes = receipts.find(id, form, &call.who, call.audits).await?;
    let mut answer = whole(StatusCode::OK, form.media_type(), bytes, Held::default());
    if form == ReceiptForm::Disclosure {
        // What is erased here must not live on in a cache on the way.
        answer.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    Ok(answer)
}
