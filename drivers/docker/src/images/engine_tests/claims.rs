//! Whose images are: of a slug its user's, and nobody else's.

use hsup_driver_kit::{Status, proto::Release};

use super::fixture::{Case, docker, me, slug};
use crate::images::{Claim, build_release, claim, find, remove};

#[tokio::test]
#[ignore = "needs a Docker engine"]
async fn an_image_of_another_users_slug_is_out_of_reach() {
    let case = Case::new("reach", &[]);
    let content = slug(&[("app/secret", 0o600, "s")]);
    let artifact = case.build(&case.release(1, &content)).await.unwrap();
    let id = &artifact.image;
    let name = format!("hsup/{}:v1", case.app);
    assert_eq!(
        find::find(&case.engine, &name).await.unwrap().unwrap().id,
        *id
    );
    let (uid, gid) = me();
    let other = (uid + 1, gid);
    let settings = case.settings();
    for name in [&name, id] {
        let base = Release {
            app: "theirs".to_owned(),
            version: 1,
            ..Release::default()
        };
        for release in [
            Release {
                image: name.clone(),
                ..base.clone()
            },
            Release {
                stack: name.clone(),
                ..base
            },
        ] {
            let built = build_release(&case.engine, &settings, other, &release, &case.listener);
            let status = Status::from(built.await.unwrap_err());
            let message = status.message();
            assert_eq!(format!("{:?}", status.code()), "PermissionDenied");
            assert!(
                message.contains(&format!("`{name}` is of another")),
                "{message}"
            );
        }
    }
    let claimed = async |uid| {
        let release = (case.app.as_str(), 1);
        claim(&case.engine, uid, id, release).await.unwrap()
    };
    assert_eq!(claimed(other.0).await, Claim::Anothers);
    assert_eq!(claimed(uid).await, Claim::Good);
    // To others it is not there.
    remove(&case.engine, other.0, &artifact).await.unwrap();
    assert_eq!(claimed(uid).await, Claim::Good);
    remove(&case.engine, uid, &artifact).await.unwrap();
    assert_eq!(claimed(uid).await, Claim::Missing);
    assert_eq!(docker(&["images", "--quiet", "hsup/theirs"]), "");
}
