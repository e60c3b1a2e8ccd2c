//! What is written is read back; what is damaged is ignored.

use outrigger_proto::wire::discovery::Resource;
use proptest::prelude::*;

use super::*;

fn snapshot() -> Vec<DeltaDiscoveryResponse> {
    let resource = |name: &str| Resource {
        name: name.into(),
        version: "1".into(),
        ..Default::default()
    };
    vec![
        DeltaDiscoveryResponse {
            type_url: "a".into(),
            resources: vec![resource("x/y")],
            ..Default::default()
        },
        DeltaDiscoveryResponse {
            type_url: "b".into(),
            removed_resources: vec!["x/z/*".into()],
            ..Default::default()
        },
    ]
}

fn store(path: &Path) -> Store {
    Store {
        path: path.into(),
        pending: watch::Sender::new(None),
    }
}

#[tokio::test]
async fn a_snapshot_is_written_and_read_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("new/default.post.snapshot");
    replace(&path, &encode(&snapshot())).expect("written");
    assert_eq!(store(&path).load().await, snapshot());
    let files: Vec<_> = std::fs::read_dir(path.parent().expect("a folder"))
        .expect("listed")
        .collect();
    assert_eq!(files.len(), 1, "no temporary file stays: {files:?}");
}

#[tokio::test]
async fn a_missing_or_foreign_file_is_nothing_to_start_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("s");
    assert!(store(&path).load().await.is_empty());
    std::fs::write(&path, "mesh: blog\n").expect("written");
    assert!(store(&path).load().await.is_empty());
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(store(&path).load().await.is_empty());
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_no_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("written");
    // A file where the folder should be fails for root too.
    let store = store(&file.join("s"));
    let mut seen = store.pending.subscribe();
    let save = async {
        store.save(&snapshot());
        seen.changed().await.expect("handed over");
        store.save(&snapshot());
        seen.changed().await.expect("handed over again");
    };
    tokio::select! {
        () = store.write() => panic!("the writer ended"),
        () = save => {}
    }
}

proptest! {
    #[test]
    fn every_change_of_a_byte_is_noticed(at in 0usize..60, xor in 1u8..) {
        let mut bytes = encode(&snapshot()).to_vec();
        let at = at % bytes.len();
        bytes[at] ^= xor;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn every_cut_is_noticed(cut in 1usize..60) {
        let bytes = encode(&snapshot());
        prop_assert!(decode(&bytes[..bytes.len().saturating_sub(cut)]).is_err());
    }

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _any = decode(&bytes);
        let mut ours = encode(&[]).to_vec();
        ours.extend(&bytes);
        let _any = decode(&ours);
    }
}
