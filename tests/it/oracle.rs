//! What a caller may not use looks like what is not there.

use portcullis::digest::Digest;

use crate::support::ask::bare;
use crate::support::{Folder, Reply, Upstream};

/// A key of another tenant.
const OTHERS: &str = "pcl_of-another-tenant-0123456789abcdef";

/// A reply as far as it may tell one thing from another: status, names of headers, body.
fn told(reply: &Reply) -> (u16, Vec<String>, Vec<u8>) {
    let mut names: Vec<String> = reply.headers.keys().map(ToString::to_string).collect();
    names.sort();
    (reply.status.as_u16(), names, reply.body.to_vec())
}

#[tokio::test]
async fn a_declared_path_of_another_tenant_is_not_there_whatever_the_method() {
    let upstream = Upstream::language().await;
    let folder = Folder::new();
    folder.upstream("scoring", "raw", &upstream, "", "[route]\npath = \"/predict\"\n");
    let digest = Digest::of(OTHERS.as_bytes());
    folder.callers(&format!("[[api_key]]\nid = \"other\"\nsha256 = \"{digest}\"\ntenant = \"other\"\nroles = [\"app\"]\n"));
    let gateway = folder.serve().await;
    let mut client = gateway.h2().await;
    let mut receipts = Vec::new();
    for method in ["GET", "POST", "PUT", "DELETE"] {
        let there = client.send(bare(method, "/predict", "", Some(OTHERS))).await;
        let nowhere = client.send(bare(method, "/predicx", "", Some(OTHERS))).await;
        assert_eq!(there.status, 404, "{method}");
        assert_eq!(told(&there), told(&nowhere), "{method}");
        receipts.extend(there.receipt());
        if method != "POST" {
            let own = client.send(crate::support::ask::ask(method, "/predict", "")).await;
            assert_eq!((own.status.as_u16(), own.header("allow")), (405, "POST"), "{method}");
        }
    }
    assert_eq!(receipts.len(), 4);
    gateway.stop().await;
    for entry in folder.entries().iter().filter(|entry| receipts.iter().any(|id| entry["id"] == id.as_str())) {
        assert!(!entry.to_string().contains("/predict"), "{entry}");
    }
    assert_eq!(upstream.count(), 0);
}
