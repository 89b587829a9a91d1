//! What outlives a restart, and what becomes of the gateway where that cannot be.

use std::fs;

use crate::support::ask::{ask, digit};
use crate::support::{Folder, Gateway};

const FILE: &str = "state/state.jsonl";

/// Three requests a day to the digits classifier, and a folder in which that is kept.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.digits("[budget.default]\nquota = { requests = \"3/day\" }\n");
    let gateway = folder.read("gateway.toml");
    folder.write("gateway.toml", format!("{gateway}\n[state]\ndirectory = \"../state\"\n"));
    folder
}

async fn status(gateway: &Gateway) -> u16 {
    gateway.h2().await.send(ask("POST", "/v2/models/digits/infer", digit())).await.status.as_u16()
}

#[tokio::test]
async fn a_quota_outlives_a_stop_and_a_kill_and_an_end_without_the_folder_does_not() {
    let folder = folder();
    let file = folder.home().join(FILE);
    let gateway = folder.serve().await;
    assert_eq!((status(&gateway).await, status(&gateway).await), (200, 200));
    gateway.stop().await;
    let kept = fs::read_to_string(&file).unwrap();
    assert!(kept.contains("api_key:app"), "{kept}");

    let gateway = folder.serve().await;
    assert_eq!((status(&gateway).await, status(&gateway).await), (200, 429));
    // It is written while the gateway runs, too.
    let asked = std::time::Instant::now();
    while fs::read_to_string(&file).unwrap() == kept {
        assert!(asked.elapsed().as_secs() < 60, "it is not written again");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    gateway.kill();
    let gateway = folder.serve().await;
    assert_eq!(status(&gateway).await, 429);
    gateway.stop().await;

    fs::remove_file(&file).unwrap();
    let gateway = folder.serve().await;
    assert_eq!(status(&gateway).await, 200, "everything begins anew");
    gateway.stop().await;
}

#[tokio::test]
async fn a_file_that_is_not_what_was_written_and_a_folder_in_use_stop_the_start() {
    let folder = folder();
    let gateway = folder.serve().await;
    assert_eq!(status(&gateway).await, 200);
    let refused = |said: &str| {
        let done = folder.run(&["serve", "--policies", folder.policies().to_str().unwrap()]);
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(1) && told.contains(said), "{told}");
    };
    gateway.stop().await;
    let file = folder.home().join(FILE);
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 5]).unwrap();
    refused("state.jsonl: line");
    fs::write(&file, whole).unwrap();
    let held = fs::File::open(folder.home().join("state/lock")).unwrap();
    held.try_lock().unwrap();
    refused("another gateway is at work with it");
    drop(held);
    folder.serve().await.stop().await;
}

#[tokio::test]
async fn what_cannot_be_written_is_told_while_it_lasts() {
    let folder = folder();
    let gateway = folder.serve().await;
    assert_eq!(status(&gateway).await, 200);
    // A folder in the place of the file, which no file can take.
    let file = folder.home().join(FILE);
    let _ = fs::remove_file(&file);
    fs::create_dir(&file).unwrap();
    fs::write(file.join("in the way"), "").unwrap();
    assert_eq!(status(&gateway).await, 200);
    let told = gateway.says("a restart would forget it").await;
    assert!(told.contains("state.jsonl"), "{told}");
    gateway.admin_until("/readyz", |code, page| code == 200 && page.contains("a restart would forget it")).await;
    fs::remove_dir_all(&file).unwrap();
    gateway.says("over: what callers have used and learned").await;
    gateway.stop().await;
    assert!(fs::read_to_string(&file).unwrap().contains("api_key:app"));
}
