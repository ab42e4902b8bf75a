//! Whether what Docker's files and images say is used only where it is meant.

use super::{
    credentials::{Config, in_file, registry},
    reference::{checked, of_stack, to_pull},
    user::{Accounts, dyno_user},
};

/// The name of an image in the first line, and a `config.json` behind it.
pub fn docker_config(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (reference, config) = data.split_at(end.unwrap_or(data.len()));
    let (Ok(reference), Ok(config)) = (
        str::from_utf8(reference),
        serde_json::from_slice::<Config>(config),
    ) else {
        return;
    };
    let registry = registry(reference);
    if let Ok(Some(credentials)) = in_file(&config, registry) {
        // Told to nobody else.
        assert_eq!(credentials.serveraddress.as_deref(), Some(registry));
        assert_eq!(
            credentials.username.is_some(),
            credentials.password.is_some()
        );
    }
}

/// A stack, the user of an image, and its /etc/passwd and /etc/group with an empty line between.
pub fn docker_images(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.splitn(3, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (stack, user) = (next(), next());
    if let Ok(image) = of_stack(stack) {
        // It is part of a path on its way to the engine.
        assert_eq!(checked(&image), Ok(image.clone()));
        assert!(!image.contains("..") || image.split('/').all(|part| part != ".."));
        let (repository, tag) = to_pull(&image);
        assert!(!repository.is_empty() && tag.is_none_or(|tag| !tag.contains('/')));
    }
    let (passwd, group) = next().split_once("\n\n").unwrap_or_default();
    let accounts = Accounts {
        passwd: passwd.to_owned(),
        group: group.to_owned(),
    };
    let Ok(found) = dyno_user(user, &accounts) else {
        return;
    };
    assert_ne!(found.uid, 0);
    if let Some(made) = found.made {
        let again = dyno_user("dyno", &made).expect("who was made");
        assert_eq!((again.uid, again.gid), (found.uid, found.gid));
        assert_eq!(again.made, None);
    }
}
