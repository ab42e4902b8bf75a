//! Whether a kernel has a feature, by all that tells of it. Pure.

use super::facts::Presence;

/// What the machine says of its kernel; what it has not is empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    /// `/proc/config.gz`, or `config-…` in `/boot`.
    pub(super) config: String,
    /// `modules.builtin` and `modules.dep`: paths, one at the beginning of each line.
    pub(super) builtin: String,
    pub(super) modules: String,
}

impl Sources {
    /// `module` is its name, `option` the one that builds it, without `CONFIG_`; `loaded` says
    /// that it is at work now.
    pub(super) fn presence(&self, module: &str, option: &str, loaded: bool) -> Presence {
        if loaded || has_module(&self.builtin, module) {
            return Presence::Here;
        }
        if has_module(&self.modules, module) {
            return Presence::Loadable;
        }
        match self.config_of(option) {
            Some("y") => Presence::Here,
            // Built, and not installed.
            Some("m") => Presence::Absent,
            _ if !self.config.is_empty() || !self.modules.is_empty() => Presence::Absent,
            _ => Presence::Unknown,
        }
    }

    fn config_of(&self, option: &str) -> Option<&str> {
        self.config.lines().find_map(|line| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            (name == option).then_some(value)
        })
    }
}

/// Modules are compressed in several ways; `-` and `_` are the same in their names.
fn has_module(list: &str, module: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        let name = file.split(".ko").next().unwrap_or_default();
        name.replace('-', "_") == module
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("", "", "", false => Presence::Unknown; "nothing tells")]
    #[test_case("", "", "", true => Presence::Here; "it is at work")]
    #[test_case("", "kernel/net/nf_tables.ko\n", "", false => Presence::Here; "built in")]
    #[test_case("", "", "kernel/net/nf-tables.ko.xz: kernel/a.ko\n", false => Presence::Loadable)]
    #[test_case("", "", "kernel/a.ko: kernel/nf_tables.ko\n", false => Presence::Absent; "what needs it is not it")]
    #[test_case("CONFIG_NF_TABLES=y\n", "", "", false => Presence::Here)]
    #[test_case("CONFIG_NF_TABLES=m\n", "", "", false => Presence::Absent; "its module is not installed")]
    #[test_case("CONFIG_NF_TABLES=m\n", "", "kernel/nf_tables.ko:\n", false => Presence::Loadable; "its module is")]
    #[test_case("# CONFIG_NF_TABLES is not set\nCONFIG_NF_TABLES_INET=y\n", "", "", false => Presence::Absent)]
    fn a_feature(config: &str, builtin: &str, modules: &str, loaded: bool) -> Presence {
        let sources = Sources {
            config: config.to_owned(),
            builtin: builtin.to_owned(),
            modules: modules.to_owned(),
        };
        sources.presence("nf_tables", "NF_TABLES", loaded)
    }
}
