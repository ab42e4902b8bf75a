//! Finding an image in the engine, which pulls it if it does not have it.

use bollard::{
    Docker,
    models::ImageInspect,
    query_parameters::{CreateImageOptionsBuilder, ListImagesOptionsBuilder},
};
use futures_util::StreamExt as _;
use hsup_driver_kit::errors;

use super::{
    credentials,
    error::{Fault, ImageError, fault},
    labels, reference, remove_name,
    settings::Settings,
    told::{Listener, Pulled},
};

const STEP: &str = "pull image";

/// An image that the engine has.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) id: String,
    pub(super) inspect: ImageInspect,
}

/// Finds an image that this user may have, or pulls it, with what credentials that user may use.
pub(super) async fn find_or_pull(
    engine: &Docker,
    settings: &Settings,
    uid: u32,
    reference: &str,
    listener: &dyn Listener,
) -> Result<Image, ImageError> {
    let anothers = || ImageError::Anothers(reference.to_owned());
    if let Some(image) = find(engine, reference).await? {
        let is_anothers = labels::is_anothers(&image.inspect, uid);
        return if is_anothers {
            Err(anothers())
        } else {
            Ok(image)
        };
    }
    listener.line(&format!("pulling the image {reference}"));
    let failed = |source| ImageError::Pull {
        image: reference.to_owned(),
        source,
    };
    let login = match settings.logins_for(uid) {
        Some(folder) => credentials::find(folder, reference).await,
        None => Ok(None),
    };
    let login = login.unwrap_or_else(|error| {
        let why = errors::chain(&error);
        listener.line(&format!("pulling without credentials: {why}"));
        None
    });
    let (repository, tag) = reference::to_pull(reference);
    let options = CreateImageOptionsBuilder::new().from_image(repository);
    let options = match tag {
        Some(tag) => options.tag(tag),
        None => options,
    };
    let mut pull = std::pin::pin!(engine.create_image(Some(options.build()), None, login));
    let mut pulled = Pulled::default();
    while let Some(said) = pull.next().await {
        if let Some((done, total)) = pulled.hear(&said.map_err(failed)?) {
            listener.progress(STEP, done, total);
        }
    }
    let inspect = engine.inspect_image(reference).await.map_err(failed)?;
    let image = known(reference, inspect)?;
    if labels::is_anothers(&image.inspect, uid) {
        // A Build of that user would take it for an image of its own slug.
        remove_name(engine, reference).await?;
        return Err(anothers());
    }
    Ok(image)
}

/// Finds an image; `None` if the engine has none of this name or id.
pub(super) async fn find(engine: &Docker, reference: &str) -> Result<Option<Image>, ImageError> {
    match engine.inspect_image(reference).await {
        Ok(inspect) => known(reference, inspect).map(Some),
        Err(error) if fault(&error) == Fault::Missing => Ok(None),
        Err(error) => Err(ImageError::engine("look at the image", reference)(error)),
    }
}

/// Whether this is the id of an image, as it is in an artifact.
pub(super) fn is_image_id(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn known(reference: &str, inspect: ImageInspect) -> Result<Image, ImageError> {
    let id = inspect.id.clone().unwrap_or_default();
    if is_image_id(&id) {
        Ok(Image { id, inspect })
    } else {
        let of = reference.to_owned();
        Err(ImageError::Id { of, id })
    }
}

/// The stack of a release that names none.
pub(super) async fn newest_stack(engine: &Docker) -> Result<String, ImageError> {
    let filters = [("reference", vec![reference::HEROKU])].into();
    let options = ListImagesOptionsBuilder::new().filters(&filters).build();
    let images = engine.list_images(Some(options)).await;
    let images = images.map_err(ImageError::engine("list the images of", reference::HEROKU))?;
    let tags = images.iter().flat_map(|image| &image.repo_tags);
    Ok(reference::newest(tags.map(String::as_str)))
}
