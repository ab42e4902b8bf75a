//! A slug on a stack, as an image.

use std::{io, path::Path, pin::pin, sync::LazyLock, time::Duration};

use bollard::{Docker, models::ContainerConfig};
use bytes::Bytes;
use futures_util::stream;
use hsup_driver_kit::{errors, file_url, hex, identity, proto::Release};
use hsup_slug::{Fetch, LayerError, Layering, Peer, SlugError, SlugId};
use nix::unistd::{getegid, geteuid};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use tokio::{select, sync::mpsc, time::timeout};

use super::{
    claim,
    error::ImageError,
    find::{self, Image},
    labels::Origin,
    prune::{labelled, prune},
    reference,
    settings::{Cache, Settings},
    told::{Listener, Told},
    user::{Accounts, DynoUser, dyno_user},
    workshop::Workshop,
};
use crate::{
    artifact::{Artifact, Kind},
    config,
};

/// `hsup-init`, built for this machine by the build script.
const INIT: &[u8] = include_bytes!(env!("HSUP_INIT"));
/// What tells one init from another.
static FINGERPRINT: LazyLock<String> = LazyLock::new(|| hex::encode(&Sha256::digest(INIT)[..8]));
/// Where a slug is in an image.
const APP: &str = "/app";
/// Who fetches slugs where the driver is root: nobody.
const NOBODY: u32 = 65_534;
/// How many pieces of a slug wait for the engine.
const AHEAD: usize = 8;
/// How long a slug may take to fail by itself when the engine takes no more of it.
const OWN_REASON: Duration = Duration::from_secs(5);
/// How often a slug that changes all the time is read.
const READINGS: usize = 5;

/// Makes the image of a release, or finds the one that was made before.
pub(super) async fn build(
    engine: &Docker,
    settings: &Settings,
    (uid, gid): (u32, u32),
    release: &Release,
    listener: &dyn Listener,
) -> Result<Artifact, ImageError> {
    let checksum = match release.slug_checksum.as_str() {
        "" => None,
        text => Some(text.parse().map_err(ImageError::Checksum)?),
    };
    let stack = if release.stack.is_empty() {
        let stack = find::newest_stack(engine).await?;
        listener.line(&format!("the release names no stack: it is {stack}"));
        stack
    } else {
        release.stack.clone()
    };
    let reference = reference::of_stack(&stack)?;
    let stack = find::find_or_pull(engine, settings, uid, &reference, listener).await?;
    refuse_volume(&reference, &stack)?;
    let making = Making {
        url: &release.slug_url,
        engine,
        settings,
        origin: Origin {
            app: release.app.clone(),
            release: release.version,
            stack: stack.id.clone(),
            uid,
            init: FINGERPRINT.clone(),
        },
        reference,
        stack,
        listener,
    };
    let slug = (!release.slug_url.is_empty())
        .then(|| Fetch::new(release.slug_url.clone(), checksum, reader(uid, gid)));
    making.find_or_make(slug).await
}

/// What tells one state of the file or directory of a slug from another, as its caller sees it.
pub(super) async fn changed(
    settings: &Settings,
    (uid, gid): (u32, u32),
    path: &Path,
) -> Option<Vec<u8>> {
    hsup_slug::state(&settings.program, &reader(uid, gid), path).await
}

/// A driver that is root reads a file as its caller. Any other is its caller, or has root for
/// one, who can do without its rights.
fn reader(uid: u32, gid: u32) -> Peer {
    if geteuid().is_root() {
        Peer::of_uid(uid, gid)
    } else {
        Peer::of_uid(geteuid().as_raw(), getegid().as_raw())
    }
}

/// Who fetches from a network, and checks what a stranger made.
fn stranger() -> Peer {
    let (uid, gid) = if geteuid().is_root() {
        (NOBODY, NOBODY)
    } else {
        (geteuid().as_raw(), getegid().as_raw())
    };
    Peer {
        uid,
        gid,
        groups: Some(Vec::new()),
    }
}

/// What is put where a volume is goes into the volume, and not into the image.
fn refuse_volume(reference: &str, stack: &Image) -> Result<(), ImageError> {
    let config = stack.inspect.config.as_ref();
    let volumes = config.and_then(|config| config.volumes.as_ref());
    let hides = |path: &&String| {
        let path = path.trim_end_matches('/');
        path.is_empty() || path == APP || path.starts_with("/app/")
    };
    match volumes.into_iter().flatten().find(hides) {
        Some(path) => Err(ImageError::Volume {
            image: reference.to_owned(),
            path: path.clone(),
        }),
        None => Ok(()),
    }
}

/// An image in the making.
struct Making<'a> {
    /// Of the slug. A secret.
    url: &'a str,
    engine: &'a Docker,
    settings: &'a Settings,
    origin: Origin,
    /// The name of the stack's image.
    reference: String,
    stack: Image,
    listener: &'a dyn Listener,
}

impl Making<'_> {
    async fn find_or_make(&self, slug: Option<Fetch>) -> Result<Artifact, ImageError> {
        let Some(mut slug) = slug else {
            return self.known_or_made(None).await;
        };
        let path = file_url::path(self.url);
        if slug.checksum.is_some() {
            if let (Some(path), true) = (&path, file_url::is_directory(self.url)) {
                let path = path.clone();
                return Err(SlugError::DirectoryChecksum { path }.into());
            }
            return self.known_or_made(Some(&slug)).await;
        }
        if self.settings.cache == Cache::SameRelease
            && let Some(found) = self.known(&self.origin.same_release()).await?
        {
            return Ok(found);
        }
        let Some(path) = path else {
            return self.make(Some(&slug)).await;
        };
        // It is read twice: the first time tells whether it is here already, which is so each
        // time but the first.
        let (layering, told) = (self.layering((0, 0)), Told(self.listener));
        for _ in 0..READINGS {
            slug.checksum = None;
            let id = hsup_slug::identify(&layering, &slug, &told).await?;
            slug.checksum = Some(id);
            match self.known_or_made(Some(&slug)).await {
                // It is being written to just now: what is it now?
                Err(ImageError::Slug(SlugError::Checksum { .. })) => {
                    self.listener
                        .line("the slug changed while it was read: once more");
                }
                result => return result,
            }
        }
        let from = path.display().to_string();
        Err(SlugError::Changed { from }.into())
    }

    async fn known_or_made(&self, slug: Option<&Fetch>) -> Result<Artifact, ImageError> {
        let checksum = slug.and_then(|slug| slug.checksum);
        let labels = self.origin.same_slug(checksum_text(checksum).as_deref());
        match self.known(&labels).await? {
            Some(found) => Ok(found),
            None => self.make(slug).await,
        }
    }

    /// The newest image that has these labels.
    async fn known(&self, labels: &[String]) -> Result<Option<Artifact>, ImageError> {
        if self.settings.cache == Cache::Off {
            return Ok(None);
        }
        let images = labelled(self.engine, labels).await?;
        let Some(newest) = images.into_iter().max_by_key(|image| image.created) else {
            return Ok(None);
        };
        // It may just have been removed.
        let Some(image) = find::find(self.engine, &newest.id).await? else {
            return Ok(None);
        };
        let Origin { app, release, .. } = &self.origin;
        if !claim::named(self.engine, &image, app, *release).await? {
            return Ok(None);
        }
        let config = image.inspect.config.unwrap_or_default();
        let user = config.user.unwrap_or_default();
        let ids = user.split_once(':');
        let ids = ids.and_then(|(uid, gid)| uid.parse().ok().zip(gid.parse().ok()));
        Ok(ids.map(|(uid, gid)| {
            self.listener.line("this slug is an image already");
            Artifact {
                image: image.id,
                kind: Kind::Slug { uid, gid },
            }
        }))
    }

    async fn make(&self, slug: Option<&Fetch>) -> Result<Artifact, ImageError> {
        let workshops = &self.settings.workshops;
        let workshop = Workshop::open(self.engine, workshops, &self.stack.id).await?;
        let made = self.make_in(&workshop, slug).await;
        let closed = workshop
            .close()
            .await
            .and(workshops.sweep(self.engine).await);
        let artifact = made?;
        let pruned = prune(
            self.engine,
            &self.origin,
            self.settings.keep,
            &artifact.image,
        );
        // The image is there whatever became of others.
        match closed.and(pruned.await) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(app = self.origin.app, removed, "images removed"),
            Err(error) => {
                let error = errors::chain(&error);
                tracing::warn!(error, "what is no longer needed was not removed");
            }
        }
        Ok(artifact)
    }

    async fn make_in(
        &self,
        workshop: &Workshop,
        slug: Option<&Fetch>,
    ) -> Result<Artifact, ImageError> {
        let accounts = Accounts {
            passwd: workshop.read("/etc/passwd").await?,
            group: workshop.read("/etc/group").await?,
        };
        let config = self.stack.inspect.config.as_ref();
        let user = config.and_then(|config| config.user.as_deref());
        let user = dyno_user(user.unwrap_or_default(), &accounts);
        let user = user.map_err(|source| ImageError::User {
            image: self.reference.clone(),
            source,
        })?;
        let ground = Bytes::from(ground(&user).map_err(ImageError::Ground)?);
        workshop.put(stream::iter([ground])).await?;
        let checksum = match slug {
            Some(slug) => Some(self.pour(workshop, slug, &user).await?),
            None => None,
        };
        self.listener.line("making the image");
        let (repository, tag) = self.origin.name();
        let labels = self.origin.labels(checksum_text(checksum).as_deref());
        let config = ContainerConfig {
            user: Some(format!("{}:{}", user.uid, user.gid)),
            working_dir: Some(APP.to_owned()),
            // What else the stack has stays.
            env: Some(vec![format!("HOME={APP}")]),
            entrypoint: Some(vec![config::INIT.to_owned()]),
            labels: Some(labels),
            ..ContainerConfig::default()
        };
        let id = workshop.commit(&repository, &tag, config).await?;
        if !find::is_image_id(&id) {
            return Err(ImageError::Id { of: repository, id });
        }
        Ok(Artifact {
            image: id,
            kind: Kind::Slug {
                uid: user.uid,
                gid: user.gid,
            },
        })
    }

    /// Puts the slug in while it is fetched. Nothing may be made of that before this is done.
    async fn pour(
        &self,
        workshop: &Workshop,
        slug: &Fetch,
        user: &DynoUser,
    ) -> Result<SlugId, ImageError> {
        let (taker, taken) = mpsc::channel(AHEAD);
        let archive = stream::unfold(taken, |mut taken: mpsc::Receiver<Bytes>| async {
            let piece = taken.recv().await?;
            Some((piece, taken))
        });
        let layering = self.layering((user.uid, user.gid));
        let told = Told(self.listener);
        let mut layer = pin!(hsup_slug::layer(&layering, slug, taker, &told));
        let mut put = pin!(workshop.put(archive));
        let ends = select! {
            layer = &mut layer => (layer, put.await),
            put = &mut put => match put {
                Ok(()) => (layer.await, Ok(())),
                // A slug that is cut is a reason of its own, and an engine that is away is one not
                // to fetch any more.
                Err(error) => match timeout(OWN_REASON, layer).await {
                    Ok(layer) => (layer, Err(error)),
                    Err(_) => return Err(error),
                },
            },
        };
        match ends {
            (Err(LayerError::Slug(error)), _) => Err(error.into()),
            (_, Err(error)) => Err(error),
            (Err(LayerError::NotTaken), Ok(())) => Err(ImageError::Part),
            (Ok(id), Ok(())) => Ok(id),
        }
    }

    fn layering(&self, owner: (u32, u32)) -> Layering {
        Layering {
            program: self.settings.program.clone(),
            user: stranger(),
            limits: self.settings.limits.clone(),
            owner,
        }
    }
}

fn checksum_text(id: Option<SlugId>) -> Option<String> {
    id.map(|id| id.to_string())
}

/// What an image has besides its stack and its slug: where that goes, the init, the files where
/// that says how the command ended and who the dyno is, and the user if the stack has none.
fn ground(user: &DynoUser) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let below = |path: &'static str| path.trim_start_matches('/');
    let mut add = |kind, mode, owner: (u32, u32), path: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0.into());
        header.set_gid(owner.1.into());
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content)
    };
    let root = (0, 0);
    add(
        EntryType::Directory,
        0o755,
        (user.uid, user.gid),
        "app/",
        b"",
    )?;
    add(EntryType::Directory, 0o755, root, ".hsup/", b"")?;
    add(EntryType::Regular, 0o755, root, below(config::INIT), INIT)?;
    let owner = (user.uid, user.gid);
    add(EntryType::Regular, 0o600, owner, below(config::STATUS), b"")?;
    add(EntryType::Directory, 0o755, root, "etc/heroku/", b"")?;
    add(EntryType::Regular, 0o644, owner, below(identity::PATH), b"")?;
    if let Some(made) = &user.made {
        let (passwd, group) = (made.passwd.as_bytes(), made.group.as_bytes());
        add(EntryType::Regular, 0o644, root, "etc/passwd", passwd)?;
        add(EntryType::Regular, 0o644, root, "etc/group", group)?;
    }
    archive.into_inner()
}
