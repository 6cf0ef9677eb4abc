//! Hundreds of images that share layers: all are there, each can be asked for, and a removal takes what is
//! nobody's any more and nothing else. How long that takes is the program `podhold-crowd`'s matter.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeSet, fs};

use futures::{StreamExt, stream};
use podhold_integration::{
    crowd::{self, KIN},
    rig,
    rig::Rig,
};
use podhold_proto::cri::{ImageFsInfoRequest, ImageSpec, ImageStatusRequest};

const COUNT: usize = 200;

fn layers(rig: &Rig) -> usize {
    fs::read_dir(rig.places.state().join("images/layers")).unwrap().count()
}

async fn tags(rig: &Rig) -> BTreeSet<String> {
    let images = rig.cri().list_images().await.unwrap();
    images
        .into_iter()
        .flat_map(|image| image.repo_tags)
        .filter(|tag| tag.starts_with(crowd::REGISTRY))
        .collect()
}

fn expected(numbers: impl Iterator<Item = usize>) -> BTreeSet<String> {
    numbers.map(crowd::reference).collect()
}

async fn used(rig: &Rig) -> (u64, u64) {
    let answer = rig.cri().images.clone().image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    let usage = &answer.image_filesystems[0];
    (usage.used_bytes.unwrap().value, usage.inodes_used.unwrap().value)
}

async fn is_there(rig: &Rig, name: &str) -> bool {
    let image = Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = ImageStatusRequest { image, verbose: true };
    rig.cri().images.clone().image_status(request).await.unwrap().into_inner().image.is_some()
}

#[tokio::test]
async fn hundreds_of_images_come_and_go_with_exactly_their_layers() {
    let mut rig = rig!();
    let (others, before) = (layers(&rig), used(&rig).await);
    crowd::serve(&rig.machine, COUNT).await.unwrap();
    rig.places.allow_plain_http(crowd::REGISTRY).unwrap();
    let pulls = stream::iter(0..COUNT).map(|number| {
        let cri = rig.cri().clone();
        async move { cri.pull(&crowd::reference(number)).await }
    });
    let pulled: Vec<String> = pulls.buffered(8).map(Result::unwrap).collect().await;
    assert_eq!(pulled.iter().collect::<BTreeSet<_>>().len(), COUNT, "each image has an id of its own");
    assert_eq!(layers(&rig), others + crowd::layers(COUNT));
    assert_eq!(tags(&rig).await, expected(0..COUNT));
    let full = used(&rig).await;

    rig.restart().await;
    assert_eq!(tags(&rig).await, expected(0..COUNT), "after a restart");
    assert_eq!(used(&rig).await, full);
    for number in (0..COUNT).step_by(17) {
        assert!(is_there(&rig, &crowd::reference(number)).await);
        assert!(is_there(&rig, &pulled[number]).await, "by id");
        // What it came from is known: this asks the registry for nothing but the digest.
        assert_eq!(rig.cri().pull(&crowd::reference(number)).await.unwrap(), pulled[number]);
    }

    // All kin of the first group go: their layer with them. Of the others one each.
    let gone = |number: &usize| *number < KIN || number % KIN == 3;
    for number in (0..COUNT).filter(gone) {
        rig.cri().remove_image(&pulled[number]).await.unwrap();
        assert!(!is_there(&rig, &crowd::reference(number)).await);
    }
    let left = COUNT - (0..COUNT).filter(gone).count();
    assert_eq!(tags(&rig).await, expected((0..COUNT).filter(|number| !gone(number))));
    assert_eq!(layers(&rig), others + 1 + COUNT / KIN - 1 + left);
    rig.restart().await;
    assert_eq!(layers(&rig), others + 1 + COUNT / KIN - 1 + left, "after a restart");
    assert_eq!(tags(&rig).await.len(), left);

    for tag in tags(&rig).await {
        rig.cri().remove_image(&tag).await.unwrap();
    }
    assert_eq!((layers(&rig), used(&rig).await), (others, before), "nothing is left");
    rig.finish().await;
}
