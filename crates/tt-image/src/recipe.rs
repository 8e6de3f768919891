//! Templates by recipe: what `tt_model::recipe` reads becomes files and a disk. The recipes that are built in are such files,
//! too, and take the same way. A build is keyed by all that goes into it, so it happens once for each combination; a cached
//! one is installed in milliseconds. It never installs a package on the host, nor runs a program of a recipe's own there.

mod nodes;

pub(crate) use nodes::Copies;

use crate::boot::{Boot, First, RECIPE, prune};
use crate::draft::describe;
use crate::files::{self, Lock, Temporary};
use crate::rootfs::{Node, Nodes};
use crate::{Catalogue, Facts, ImageError, Packages, Progress, busybox, debian, digest, record};
use std::path::{Path, PathBuf};
use tt_guest::entry::Entry;
use tt_model::recipe::{GROUND_BUSYBOX, Recipe};
use tt_model::template::{FEATURE_AGENT, FEATURE_CLOUD_INIT, MEMO_BYTES_MAX};
use tt_model::{Refusal, VmTemplate};

/// Name of the recipe that is built in, and of its template: BusyBox.
pub const MICRO: &str = "micro";
/// Name of the recipe that is built in, and of its template: a full Debian.
pub const DEBIAN: &str = "debian-12";

/// The recipes that are built in.
const BUILT_IN: [(&str, &str); 2] =
    [(MICRO, include_str!("recipe/micro.toml")), (DEBIAN, include_str!("recipe/debian-12.toml"))];
/// Counts the changes of what the same recipe comes to.
const FORM: u32 = 1;

/// What is to be built.
struct Plan {
    /// With all of what it builds on.
    recipe: Recipe,
    /// What it names in the guest.
    nodes: Nodes,
    /// The recipe that is built in below it, or itself.
    base: Recipe,
    memo: Option<String>,
}

/// What it is built from, found and fetched.
struct Parts<'a> {
    plan: &'a Plan,
    boot: Boot,
    ground: Ground,
}

/// What lies below a recipe's own files.
enum Ground {
    BusyBox(busybox::Ground),
    Debian(debian::Ground),
}

impl Catalogue {
    /// Builds the template of a recipe that is built in, or takes it from the cache, and gives it its name here. `progress`
    /// is told of each step as it begins. A second builder of the same kind waits for the first, if `progress` is patient.
    ///
    /// # Errors
    /// [`ImageError::Missing`] and [`ImageError::Format`] say what to install or to put right; [`ImageError::Tool`],
    /// [`ImageError::Run`], [`ImageError::Read`], [`ImageError::Write`] and [`ImageError::Busy`] may pass. The catalogue
    /// is then as it was.
    pub fn build(
        &self,
        name: &str,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let recipe = built_in(name)?;
        let _lock = self.lock_shelf(&recipe, progress)?;
        let nodes = nodes::of(&recipe, Path::new("/"), progress)?;
        self.build_plan(
            &Plan { base: recipe.clone(), recipe, nodes, memo: None },
            packages,
            progress,
        )
    }

    /// As [`Catalogue::build`], by a recipe of a user, which lies in the folder `dir`.
    ///
    /// # Errors
    /// As [`Catalogue::build`]; [`ImageError::Format`] for a file that is to be copied and can not be.
    pub fn build_recipe(
        &self,
        recipe: &Recipe,
        dir: &Path,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let base = built_in(&recipe.base)?;
        let _lock = self.lock_shelf(&base, progress)?;
        let memo = recipe.memo.clone();
        let recipe = recipe.clone().upon(&base);
        progress.step("reading the recipe's files");
        let nodes = nodes::of(&recipe, dir, progress)?;
        self.build_plan(&Plan { recipe, nodes, base, memo }, packages, progress)
    }

    fn build_plan(
        &self,
        plan: &Plan,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let shelf = self.shelf(&plan.base);
        let parts = self.parts(plan, packages, progress)?;
        let built = shelf.join("builds").join(parts.key());
        let template = match record::read(&built) {
            Ok(template) => {
                files::touch(&built);
                template
            }
            Err(_) => {
                files::remove(&built)?;
                let template = self.make(&parts, &built, packages, progress)?;
                prune(&shelf.join("builds"))?;
                template
            }
        };
        progress.step("installing");
        self.install(&built, &template, progress)?;
        Ok(template)
    }

    fn parts<'a>(
        &self,
        plan: &'a Plan,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<Parts<'a>, ImageError> {
        let _lock = Lock::take(&self.cache, progress)?;
        let boot = self.boot(packages, progress)?;
        let names = &plan.recipe.packages;
        let ground = match plan.recipe.base.as_str() {
            GROUND_BUSYBOX => Ground::BusyBox(self.busybox(names, packages, progress)?),
            suite => Ground::Debian(debian::Ground::of(suite, names)?),
        };
        Ok(Parts { plan, boot, ground })
    }

    fn make(
        &self,
        parts: &Parts<'_>,
        built: &Path,
        packages: Packages,
        progress: &dyn Progress,
    ) -> Result<VmTemplate, ImageError> {
        let Parts { plan, boot, ground } = parts;
        let shelf = self.shelf(&plan.base);
        // The packages' archive is kept before anything else is made.
        let root = match ground {
            Ground::BusyBox(_) => None,
            Ground::Debian(ground) => Some(ground.root(&shelf, packages, progress)?),
        };
        let temporary = Temporary::create(&shelf)?;
        let dir = temporary.path();
        let entry = plan.entry();
        let first = match root {
            None => First::Agent(entry.as_ref()),
            Some(_) => First::OfRoot,
        };
        {
            let _lock = Lock::take(&self.cache, progress)?;
            self.put_boot(boot, first, dir, progress)?;
        }
        let size_mb = plan.recipe.size_mb();
        match (ground, root) {
            (Ground::BusyBox(ground), _) => {
                ground.make_forms(boot, &plan.nodes, entry.as_ref(), size_mb, dir, progress)?;
            }
            (_, Some(root)) => {
                debian::make_disk(&root, boot, &plan.nodes, size_mb, dir, progress)?;
            }
            (Ground::Debian(_), None) => {}
        }
        let template = describe(dir, &parts.facts(), progress)?;
        record::write(dir, &template)?;
        files::make_dir(&shelf.join("builds"))?;
        temporary.publish(built)?;
        Ok(template)
    }

    /// Where is kept what is built on the same recipe that is built in.
    fn shelf(&self, base: &Recipe) -> PathBuf {
        self.cache.join(&base.name)
    }

    /// For all of a build. Of that shelf alone: who builds on something else does not wait for the minutes that a Debian takes.
    fn lock_shelf(&self, base: &Recipe, progress: &dyn Progress) -> Result<Lock, ImageError> {
        match progress.is_patient() {
            true => Lock::take(&self.shelf(base), progress),
            false => Lock::take_now(&self.shelf(base), progress),
        }
    }
}

impl Plan {
    /// What the agent starts.
    fn entry(&self) -> Option<Entry> {
        self.recipe.process.clone().map(|process| Entry {
            argv: process.argv,
            env: process.env.into_iter().collect(),
            user: process.user,
            cwd: process.cwd,
        })
    }
}

impl Parts<'_> {
    /// Stands for everything that goes into a build.
    fn key(&self) -> String {
        let Self { plan, boot, ground } = self;
        let mut lines = vec![
            format!("{RECIPE} {FORM}"),
            format!("{:?}", self.facts()),
            format!("{:?} {:?}", plan.recipe.size_mb(), plan.entry()),
            boot.package().to_owned(),
            digest::of_bytes(&boot.agent),
        ];
        lines.extend(match ground {
            Ground::BusyBox(ground) => ground.key(),
            Ground::Debian(ground) => vec![ground.key()],
        });
        lines.extend(plan.nodes.iter().map(|(path, node)| match node {
            Node::Dir(mode) => format!("{path:?} {mode:o}"),
            Node::File(mode, content) => format!("{path:?} {mode:o} {}", digest::of_bytes(content)),
            Node::Link(to) => format!("{path:?} {to:?}"),
        }));
        digest::of_bytes(lines.join("\n").as_bytes())
    }

    fn facts(&self) -> Facts {
        let Self { plan, boot, .. } = self;
        let memo = plan.memo.clone().unwrap_or_else(|| {
            let memo = plan.base.memo.as_deref().unwrap_or(&plan.base.name);
            let mut memo = format!("{memo} on {}", boot.package());
            memo.truncate(memo.floor_char_boundary(MEMO_BYTES_MAX));
            memo
        });
        let mut inside = vec![FEATURE_AGENT.to_owned()];
        if plan.recipe.packages.iter().any(|name| name == FEATURE_CLOUD_INIT) {
            inside.push(FEATURE_CLOUD_INIT.to_owned());
        }
        Facts {
            name: plan.recipe.name.clone(),
            memo: Some(memo),
            arch: std::env::consts::ARCH.into(),
            inside,
        }
    }
}

fn built_in(name: &str) -> Result<Recipe, ImageError> {
    let unusable =
        |problem: String| ImageError::Format { what: format!("recipe {name:?}"), problem };
    let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
        let known = BUILT_IN.map(|(known, _)| known).join(", ");
        return Err(unusable(format!("it is not built in; there are: {known}")));
    };
    Recipe::parse_built_in(text).map_err(|refusal: Refusal| unusable(refusal.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;

    #[test]
    fn the_recipes_that_are_built_in_are_those_that_are_known() {
        assert_eq!(BUILT_IN.map(|(name, _)| name), tt_model::recipe::BUILT_IN);
        for (name, _) in BUILT_IN {
            let recipe = built_in(name).unwrap();
            assert_eq!(recipe.name, name);
            assert!(tt_model::recipe::GROUNDS.contains(&recipe.base.as_str()));
        }
        let error = built_in("arch").unwrap_err();
        assert!(error.to_string().ends_with("there are: micro, debian-12"), "{error}");
    }

    #[test]
    fn every_part_counts_in_the_key() {
        let key = |kernel: &str, agent: &[u8], ground: &str, text: &str| {
            let text = format!("name = \"x\"\nbase = \"debian-12\"\n{text}");
            let base = built_in(DEBIAN).unwrap();
            let recipe = Recipe::parse(&text).unwrap();
            let memo = recipe.memo.clone();
            let recipe = recipe.upon(&base);
            let nodes = nodes::of(&recipe, Path::new("/"), &Quiet).unwrap();
            let ground = debian::Ground::with(&recipe.packages, ground);
            let boot = Boot { package: kernel.into(), agent: agent.into() };
            let plan = Plan { recipe, nodes, base, memo };
            Parts { plan: &plan, boot, ground: Ground::Debian(ground) }.key()
        };
        let first = key("/d/linux_1_amd64.deb", b"a", "deb x", "");
        assert_eq!(first, key("/elsewhere/linux_1_amd64.deb", b"a", "deb x", ""));
        let others = [
            key("/d/linux_2_amd64.deb", b"a", "deb x", ""),
            key("/d/linux_1_amd64.deb", b"b", "deb x", ""),
            key("/d/linux_1_amd64.deb", b"a", "deb y", ""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "size = \"4G\""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "memo = \"mine\""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "packages = [\"nginx\"]"),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "[[dir]]\npath = \"/a\""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "[[dir]]\npath = \"/a\"\nmode = 1"),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "[[link]]\npath = \"/a\"\nto = \"b\""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "[[file]]\npath = \"/a\"\ntext = \"b\""),
            key("/d/linux_1_amd64.deb", b"a", "deb x", "[[file]]\npath = \"/a\"\ntext = \"c\""),
        ];
        let all: std::collections::BTreeSet<_> = others.iter().chain([&first]).collect();
        assert_eq!(all.len(), others.len() + 1);
    }
}
