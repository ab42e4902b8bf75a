//! Who a dyno is, as Heroku tells it in a file of the dyno's.

use hsup_proto::driver::StartRequest;
use serde_json::json;

/// Where a dyno finds it.
pub const PATH: &str = "/etc/heroku/dyno";

/// What the file says of the dyno that is to be started. What its environment does not tell is
/// empty there, too.
pub fn text(request: &StartRequest) -> String {
    let told = |name: &str| request.env.get(name).map_or("", String::as_str);
    let identity = json!({
        "dyno": {
            "id": request.dyno_id,
            "name": format!("{}.{}", request.process_type, request.process_number),
        },
        "app": { "id": told("HEROKU_APP_ID"), "name": request.app },
        "release": {
            "id": request.release,
            "commit": told("HEROKU_SLUG_COMMIT"),
            "description": told("HEROKU_SLUG_DESCRIPTION"),
        },
    });
    format!("{identity}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dyno_finds_who_it_is_in_heroku_s_form() {
        let mut request = StartRequest {
            dyno_id: "web-1-abc".to_owned(),
            app: "shop".to_owned(),
            release: 18,
            process_type: "web".to_owned(),
            process_number: 1,
            ..StartRequest::default()
        };
        let secret = ("DATABASE_URL".to_owned(), "hunter2".to_owned());
        let commit = ("HEROKU_SLUG_COMMIT".to_owned(), "46f55628".to_owned());
        request.env.extend([secret, commit]);
        assert_eq!(
            text(&request),
            "{\"dyno\":{\"id\":\"web-1-abc\",\"name\":\"web.1\"},\
             \"app\":{\"id\":\"\",\"name\":\"shop\"},\
             \"release\":{\"id\":18,\"commit\":\"46f55628\",\"description\":\"\"}}\n"
        );
    }
}
