//! Files of one name: what they must have in common, and what each of them says of its share.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::authorize::traffic::{MAX_VERSIONS, Traffic};
use crate::authorize::{Resource, Serves};
use crate::budget;
use crate::mistake::Mistake;
use crate::wire::tensor::Port;

/// One file, as far as others of its name must agree with it.
pub(super) struct Standing {
    /// The file.
    pub(super) file: String,
    /// Where its name stands in it, and where its table of traffic does, if it has one.
    pub(super) at: Range<usize>,
    pub(super) resource: Resource,
    pub(super) serves: Serves,
    /// The path that it declares.
    pub(super) route: Option<String>,
    pub(super) budget: budget::Terms,
    pub(super) traffic: Traffic,
    /// Whether it says its share itself.
    pub(super) says_share: bool,
    /// What it takes, where it runs in this machine.
    pub(super) inputs: Option<Vec<Port>>,
}

/// Every mistake that no file makes alone, each with its file.
pub(super) fn disagreements(files: &[Standing]) -> Vec<(String, Mistake)> {
    let mut names: BTreeMap<&str, Vec<&Standing>> = BTreeMap::new();
    for file in files {
        names.entry(&file.resource.name).or_default().push(file);
    }
    let mut told = Vec::new();
    for files in names.values() {
        of_one_name(files, &mut |file, what| told.push((file.file.clone(), Mistake::at(file.at.clone(), what))));
    }
    told
}

fn of_one_name(files: &[&Standing], tell: &mut impl FnMut(&Standing, String)) {
    let first = files[0];
    if let Some(past) = files.get(MAX_VERSIONS) {
        tell(past, format!("there are {} versions of `{}`: at most {MAX_VERSIONS}", files.len(), past.resource.name));
    }
    for file in &files[1..] {
        if let Some(what) = apart(first, file) {
            tell(file, format!("{what} of all versions of a name is the same, and {} says otherwise", first.file));
        }
    }
    let answers: Vec<(&Standing, u32, bool)> = files
        .iter()
        .filter_map(|file| match file.traffic {
            Traffic::Answers { share, sticky } => Some((*file, share, sticky)),
            Traffic::Shadows(_) => None,
        })
        .collect();
    let Some((foremost, _, sticky)) = answers.first() else {
        return tell(first, "a shadow needs a version of the same name that answers".to_owned());
    };
    if answers.iter().all(|(_, share, _)| *share == 0) {
        tell(foremost, format!("no version of `{}` has a share of its traffic: give one of them `[traffic] share`", first.resource.name));
    }
    if let Some((file, ..)) = answers.iter().find(|(_, _, other)| other != sticky) {
        tell(file, format!("`sticky` of all versions of a name is the same, and {} says otherwise", foremost.file));
    }
    let mut silent = answers.iter().filter(|(file, ..)| !file.says_share);
    if let Some((one, ..)) = silent.next() {
        for (file, ..) in silent {
            let what = "several versions answer, and neither this file nor";
            tell(file, format!("{what} {} says `[traffic] share`: it is clear what one of them gets, and not what two do", one.file));
        }
    }
    for shadow in files.iter().filter(|file| matches!(file.traffic, Traffic::Shadows(_))) {
        match (&shadow.inputs, &foremost.inputs) {
            (None, _) => tell(shadow, "only a model in this machine can be a shadow yet: leave out `shadow`".to_owned()),
            (Some(theirs), Some(ours)) if !same(theirs, ours) => {
                tell(shadow, format!("a shadow takes the inputs of those that answer, and {} takes others", foremost.file));
            }
            _ => {}
        }
    }
}

/// What two files of one name must have in common and have not.
fn apart(one: &Standing, other: &Standing) -> Option<&'static str> {
    let tenants = |file: &Standing| {
        let mut tenants = file.resource.tenants.clone();
        tenants.sort();
        tenants.dedup();
        tenants
    };
    if one.resource.public != other.resource.public || tenants(one) != tenants(other) {
        Some("`public` and `tenants`")
    } else if one.serves != other.serves {
        Some("the kind of `[backend]`, which decides the routes that lead to it,")
    } else if one.route != other.route {
        Some("`[route]`")
    } else if one.budget != other.budget {
        Some("`[budget]`, of which a caller has one for all of them,")
    } else {
        None
    }
}

/// Whether two contracts name the same inputs of the same types, in whatever order. Shapes may differ: what does not fit fails.
fn same(one: &[Port], other: &[Port]) -> bool {
    one.len() == other.len() && one.iter().all(|port| other.iter().any(|they| they.name == port.name && they.datatype == port.datatype))
}

#[cfg(test)]
mod tests;
