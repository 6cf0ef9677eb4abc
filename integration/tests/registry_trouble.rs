//! Pulls that must fail: with the right code, a message that names the image, and nothing kept.

#![allow(clippy::unwrap_used, reason = "a test")]

use podhold_integration::{bad_registry, rig, rig::REGISTRY};
use podhold_proto::cri::{ImageSpec, ImageStatusRequest};
use tonic::Code;

#[tokio::test]
async fn each_trouble_has_its_code_and_keeps_nothing() {
    let rig = rig!();
    rig.places.allow_plain_http(bad_registry::ADDRESS).unwrap();
    bad_registry::start(&rig.machine).await.unwrap();
    let bad = |repository: &str| format!("{}/{repository}:1", bad_registry::ADDRESS);
    let cases: [(String, &[Code]); 12] = [
        (bad("unauthorized"), &[Code::Unauthenticated, Code::PermissionDenied]),
        (bad("missing"), &[Code::NotFound]),
        (bad("broken"), &[Code::Unavailable]),
        (bad("garbage"), &[Code::DataLoss, Code::InvalidArgument, Code::Internal]),
        (bad("swapped"), &[Code::DataLoss]),
        (bad("truncated"), &[Code::DataLoss]),
        (bad("diffid"), &[Code::DataLoss]),
        (bad("escaping"), &[Code::DataLoss, Code::InvalidArgument]),
        (format!("{REGISTRY}/alien:1"), &[Code::NotFound, Code::FailedPrecondition]),
        ("127.0.0.1:5999/nobody/listens:1".into(), &[Code::Unavailable]),
        ("UPPER/Case:1".into(), &[Code::InvalidArgument]),
        (String::new(), &[Code::InvalidArgument]),
    ];
    for (image, codes) in cases {
        let refusal = rig.cri().pull(&image).await.expect_err(&image);
        assert!(codes.contains(&refusal.code()), "{image}: {refusal}");
        assert!(refusal.message().contains(&image), "{image} is not named in {:?}", refusal.message());
        let spec = ImageSpec { image: image.clone(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        let known = rig.cri().images.clone().image_status(request).await;
        assert!(known.is_err() || known.unwrap().into_inner().image.is_none(), "{image} is there");
    }
    assert!(!std::path::Path::new("/escaped").exists());
    rig.finish().await;
}

/// The registry that answered 404 for one image is no reason to distrust it for the next.
#[tokio::test]
async fn trouble_with_one_image_is_none_for_the_next() {
    let rig = rig!();
    assert_eq!(rig.cri().pull(&format!("{REGISTRY}/nosuch:1")).await.unwrap_err().code(), Code::NotFound);
    rig.cri().pull(&format!("{REGISTRY}/layers:1")).await.unwrap();
    rig.finish().await;
}
