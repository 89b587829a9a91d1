//! The mode `sigstore`: a certificate of minutes for an identity, and an entry in a transparency log, both verified offline by
//! `sigstore-verify` against the trust root that its release holds.
//!
//! What it checks is in its documentation: the certificate's path and its own transparency, identity and issuer, the log's inclusion proof,
//! checkpoint and promise, the times, and that entry, envelope and certificate are of one signature. Nothing is skipped. The trust root
//! ages with the release: a signature under keys that are younger is refused, never the other way round.

use sigstore_verify::trust_root::{SigstoreInstance, TrustedRoot};
use sigstore_verify::types::{Bundle, Sha256Hash, SignatureContent};
use sigstore_verify::{VerificationPolicy, Verifier};

use super::manifest::Manifest;
use super::{Fault, Identity};

/// Verifies a bundle whose statement is `payload`, as the strict parser read it from the same bytes.
pub(super) fn verify(bytes: &[u8], payload: &[u8], signer: &Identity) -> Result<(), Fault> {
    let refused = |why: String| Fault::Sigstore(why);
    let text = std::str::from_utf8(bytes).map_err(|error| refused(error.to_string()))?;
    let bundle = Bundle::from_json(text).map_err(|error| refused(error.to_string()))?;
    // Two parsers read the bundle; what is verified must be what is used.
    if !matches!(&bundle.content, SignatureContent::DsseEnvelope(envelope) if envelope.payload.as_bytes() == payload) {
        return Err(refused("its envelope can be read in two ways".to_owned()));
    }
    let root = TrustedRoot::from_embedded(SigstoreInstance::PublicGood).map_err(|error| refused(error.to_string()))?;
    let verifier = Verifier::new(&root).map_err(|error| refused(error.to_string()))?;
    let policy = VerificationPolicy::new(signer.identity.as_str(), signer.issuer.as_str());
    let model = Sha256Hash::new(*Manifest::from_statement(payload)?.root().as_bytes());
    verifier.verify(model, &bundle, &policy).map(drop).map_err(|error| refused(error.to_string()))
}
