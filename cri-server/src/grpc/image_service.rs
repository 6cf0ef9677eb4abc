//! `runtime.v1.ImageService`.

use podhold_proto::cri::{self, image_service_server::ImageService};
use tonic::{Request, Response, Status};

use super::{Batches, Service, answer, lists::batches};
use crate::runtime::credentials;

type Answer<T> = Result<Response<T>, Status>;

/// The name an image is asked for by.
fn name(spec: Option<cri::ImageSpec>) -> Result<String, Status> {
    match spec.map(|spec| spec.image).filter(|name| !name.is_empty()) {
        Some(name) => Ok(name),
        None => Err(Status::invalid_argument("image.image: is empty; name an image")),
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        let found = self.images(request.into_inner().filter);
        let images = found.iter().map(|image| answer::image(image)).collect();
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    type StreamImagesStream = Batches<cri::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let found = self.images(request.into_inner().filter).into_iter();
        let batch = |images| cri::StreamImagesResponse { images };
        Ok(Response::new(batches(found.map(|image| answer::image(&image)), batch)))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let found = self.runtime.images().find(&name(request.image)?);
        let info = match &found {
            Some(image) if request.verbose => {
                let config = serde_json::to_string(&serde_json::json!({ "imageSpec": image.config }));
                [("info".to_owned(), config.unwrap_or_default())].into()
            }
            _ => Default::default(),
        };
        let image = found.map(|image| answer::image(&image));
        Ok(Response::new(cri::ImageStatusResponse { image, info }))
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let credentials = request.auth.as_ref().map(|auth| credentials(auth, &name)).transpose()?.flatten();
        let image = self.runtime.pull_image(&name, credentials, None).await?;
        Ok(Response::new(cri::PullImageResponse { image_ref: image.id.clone() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        self.runtime.remove_image(&name(request.into_inner().image)?).await?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        let images = self.runtime.images();
        let snapshots = images.snapshots();
        let layers = answer::filesystem(snapshots.root(), images.usage());
        let writable = answer::filesystem(snapshots.root(), self.runtime.writable_layers().await?);
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![layers],
            container_filesystems: vec![writable],
        }))
    }
}
