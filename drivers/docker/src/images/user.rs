//! Whose dynos a stack's are: the user that its image names, or one that is made, but not root.
//!
//! Known from the image's /etc/passwd and /etc/group alone, so nothing is run in it.

/// The first number that a user who is made may have.
const FIRST: u32 = 1_000;
const NAME: &str = "dyno";

/// The user of a stack's dynos.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DynoUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The texts that the files must have for it.
    pub(super) made: Option<Accounts>,
}

/// The texts of /etc/passwd and /etc/group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accounts {
    pub(super) passwd: String,
    pub(super) group: String,
}

/// The image's user cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image runs as `{0}`, who is not in its /etc/passwd and /etc/group")]
pub(crate) struct NoUser(String);

/// The user of the dynos on an image: `user` is what the image says (`USER`), which may be
/// nothing, a name or a number, with a group of either kind after a colon.
pub(super) fn dyno_user(user: &str, accounts: &Accounts) -> Result<DynoUser, NoUser> {
    let unknown = || NoUser(user.to_owned());
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let named = |line: &Line<'_>| line.name == name || Ok(line.id) == name.parse();
    let (uid, primary) = match (name, lines(&accounts.passwd).find(named)) {
        ("", _) => (0, None),
        (_, Some(line)) => (line.id, line.rest.and_then(|gid| gid.trim().parse().ok())),
        // A number needs no name.
        (_, None) => (name.parse().map_err(|_| unknown())?, None),
    };
    if uid == 0 {
        return Ok(made(accounts));
    }
    let gid = match group {
        Some(group) => {
            let named = |line: &Line<'_>| line.name == group;
            let found = lines(&accounts.group).find(named).map(|line| line.id);
            found.or_else(|| group.parse().ok()).ok_or_else(unknown)?
        }
        // Docker's would be root's.
        None => primary.unwrap_or(uid),
    };
    Ok(DynoUser {
        uid,
        gid,
        made: None,
    })
}

/// A user of the name `dyno`: the image's own, or one whose number nobody has.
fn made(accounts: &Accounts) -> DynoUser {
    let here = lines(&accounts.passwd).find(|line| line.name == NAME && line.id != 0);
    if let Some(line) = here {
        let gid = line.rest.and_then(|gid| gid.trim().parse().ok());
        return DynoUser {
            uid: line.id,
            gid: gid.unwrap_or(line.id),
            made: None,
        };
    }
    let is_free = |number: &u32| {
        let has = |line: Line<'_>| line.id == *number;
        !lines(&accounts.passwd).any(has) && !lines(&accounts.group).any(has)
    };
    let id = (FIRST..u32::MAX).find(is_free).unwrap_or(FIRST);
    // As root's: a stack may have no bash.
    let shell = accounts.passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2) == Some(&"0")).then(|| fields.get(6).copied())?
    });
    let shell = shell.filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh");
    let group_is_free = !lines(&accounts.group).any(|line| line.name == NAME);
    let group = if group_is_free {
        with(&accounts.group, "root:x:0:\n", &format!("{NAME}:x:{id}:"))
    } else {
        accounts.group.clone()
    };
    DynoUser {
        uid: id,
        gid: id,
        made: Some(Accounts {
            passwd: with(
                &accounts.passwd,
                "root:x:0:0:root:/root:/bin/sh\n",
                &format!("{NAME}:x:{id}:{id}:{NAME}:/app:{shell}"),
            ),
            group,
        }),
    }
}

fn with(text: &str, otherwise: &str, line: &str) -> String {
    let text = if text.is_empty() { otherwise } else { text };
    format!("{}\n{line}\n", text.trim_end_matches('\n'))
}

/// `NAME:x:ID:REST:…`
struct Line<'a> {
    name: &'a str,
    id: u32,
    rest: Option<&'a str>,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = fields.nth(1)?.trim().parse().ok()?;
        Some(Line {
            name,
            id,
            rest: fields.next(),
        })
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    fn heroku() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nheroku:x:1000:1001::/home/heroku:/bin/bash\n"
                .to_owned(),
            group: "root:x:0:\nheroku:x:1001:\nweb:x:33:heroku".to_owned(),
        }
    }

    #[test_case("heroku", (1_000, 1_001))]
    #[test_case("1000", (1_000, 1_001); "by number")]
    #[test_case("heroku:web", (1_000, 33))]
    #[test_case("1000:7", (1_000, 7))]
    #[test_case("2000", (2_000, 2_000); "a number without a name")]
    #[test_case("heroku:", (1_000, 1_001); "an empty group")]
    fn the_users_of_images(user: &str, expected: (u32, u32)) {
        let found = dyno_user(user, &heroku()).unwrap();
        assert_eq!((found.uid, found.gid), expected);
        assert_eq!(found.made, None);
    }

    #[test_case("nobody")]
    #[test_case("heroku:nogroup")]
    #[test_case("-1")]
    fn no_users(user: &str) {
        let error = dyno_user(user, &heroku()).unwrap_err();
        assert!(error.to_string().contains(user));
    }

    #[test_case("")]
    #[test_case("root")]
    #[test_case("0:0")]
    fn for_root_one_is_made(user: &str) {
        let found = dyno_user(user, &heroku()).unwrap();
        // 1000 and 1001 are taken.
        assert_eq!((found.uid, found.gid), (1_002, 1_002));
        let made = found.made.unwrap();
        assert_eq!(
            made.passwd,
            heroku().passwd + "dyno:x:1002:1002:dyno:/app:/bin/bash\n"
        );
        assert_eq!(made.group, heroku().group + "\ndyno:x:1002:\n");
    }

    #[test]
    fn an_image_without_accounts_gets_some() {
        let none = Accounts {
            passwd: String::new(),
            group: String::new(),
        };
        let found = dyno_user("", &none).unwrap();
        assert_eq!((found.uid, found.gid), (1_000, 1_000));
        let made = found.made.unwrap();
        assert_eq!(
            made.passwd,
            "root:x:0:0:root:/root:/bin/sh\ndyno:x:1000:1000:dyno:/app:/bin/sh\n"
        );
        assert_eq!(made.group, "root:x:0:\ndyno:x:1000:\n");
    }

    #[test]
    fn a_dyno_that_is_there_is_used() {
        let mut accounts = heroku();
        accounts.passwd += "dyno:x:500:501::/app:/bin/bash";
        let found = dyno_user("", &accounts).unwrap();
        assert_eq!((found.uid, found.gid, found.made), (500, 501, None));
    }
}
