//! Who a container's first process runs as: CRI security context and image `USER`, looked up in the
//! image's own passwd and group files. Pure: the files come as text.
//!
//! Both files are hostile: lines that do not parse are skipped, never taken as root.

use std::collections::BTreeSet;

use podhold_proto::cri;

use crate::error::{Error, Result};

/// The numbers a process runs with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, without duplicates.
    pub groups: Vec<u32>,
    /// Home directory, for `HOME`.
    pub home: Option<String>,
}

/// The image's user database.
#[derive(Debug, Default)]
pub struct Accounts {
    /// Text of `/etc/passwd`; empty when the image has none.
    pub passwd: String,
    /// Text of `/etc/group`; empty when the image has none.
    pub group: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// What errors about the image's user name.
const IMAGE_USER: &str = "the image's USER";

/// Finds the user of a container. `image_user` is the image's `USER` (`user[:group]`, names or numbers).
pub fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User> {
    let asked_user = asked_user(security)?;
    if security.run_as_group.is_some() && asked_user.is_none() {
        return Err(Error::invalid(
            "linux.security_context.run_as_group",
            "a group without run_as_user or run_as_username; set the user as well",
        ));
    }
    let (user, group) = match &asked_user {
        Some(user) => (user.as_str(), None),
        None => match image_user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (image_user, None),
        },
    };
    let field = if asked_user.is_some() { "linux.security_context.run_as_username" } else { IMAGE_USER };
    let account = find_account(field, if user.is_empty() { "0" } else { user }, accounts)?;
    let gid = match (&security.run_as_group, group) {
        (Some(asked), _) => id("linux.security_context.run_as_group", asked.value)?,
        (None, Some(group)) if !group.is_empty() => find_group(group, accounts)?,
        _ => account.gid,
    };
    let groups = supplementary(security, &account, gid, accounts)?;
    Ok(User { uid: account.uid, gid, groups, home: account.home })
}

fn asked_user(security: &cri::LinuxContainerSecurityContext) -> Result<Option<String>> {
    match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => Err(Error::invalid(
            "linux.security_context.run_as_username",
            format!("{name:?} is set beside run_as_user; set one of them"),
        )),
        (Some(uid), _) => Ok(Some(id("linux.security_context.run_as_user", uid.value)?.to_string())),
        (None, "") => Ok(None),
        (None, name) => Ok(Some(name.to_owned())),
    }
}

struct Found {
    name: Option<String>,
    uid: u32,
    gid: u32,
    home: Option<String>,
}

/// A user by name or number. A number needs no entry; a name does.
fn find_account(field: &str, user: &str, accounts: &Accounts) -> Result<Found> {
    let numeric = is_number(user).then(|| number(field, user)).transpose()?;
    let mut all = passwd(&accounts.passwd);
    let entry = match numeric {
        Some(uid) => all.find(|account| account.uid == uid),
        None => all.find(|account| account.name == user),
    };
    match (entry, numeric) {
        (Some(found), _) => Ok(Found {
            name: Some(found.name.to_owned()),
            uid: found.uid,
            gid: found.gid,
            home: Some(found.home.to_owned()).filter(|home| home.starts_with('/')),
        }),
        (None, Some(uid)) => Ok(Found { name: None, uid, gid: 0, home: None }),
        (None, None) => Err(Error::invalid(
            field,
            format!("the image's /etc/passwd has no user {user:?}; use a number or an image that has it"),
        )),
    }
}

/// A group by name or number.
fn find_group(group: &str, accounts: &Accounts) -> Result<u32> {
    if is_number(group) {
        return number(IMAGE_USER, group);
    }
    let found = groups(&accounts.group).find(|entry| entry.name == group).map(|entry| entry.gid);
    found.ok_or_else(|| {
        Error::invalid(
            IMAGE_USER,
            format!("the image's /etc/group has no group {group:?}; use a number or an image that has it"),
        )
    })
}

/// The request's groups and, under the Merge policy, those the image puts the user into.
fn supplementary(
    security: &cri::LinuxContainerSecurityContext,
    account: &Found,
    gid: u32,
    accounts: &Accounts,
) -> Result<Vec<u32>> {
    let mut all = BTreeSet::from([gid]);
    for asked in &security.supplemental_groups {
        all.insert(id("linux.security_context.supplemental_groups", *asked)?);
    }
    if security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Merge
        && let Some(name) = &account.name
    {
        let of_user = groups(&accounts.group)
            .filter(|group| group.members.split(',').any(|member| member == name))
            .map(|group| group.gid);
        all.extend(of_user);
    }
    Ok(all.into_iter().collect())
}

fn is_number(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'-' || b == b'+')
}

/// A number within the kernel's range; an overflow is an error and never wraps to root.
fn number(field: &str, text: &str) -> Result<u32> {
    let parsed: Option<i64> = text.parse().ok().filter(|_| !text.starts_with('+'));
    match parsed {
        Some(value) => id(field, value),
        None => Err(Error::invalid(field, format!("{text:?} is not a number from 0 to 4294967294"))),
    }
}

/// An id from the request.
fn id(field: &str, value: i64) -> Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(field, format!("{value} is not an id from 0 to 4294967294")))
}

fn passwd(text: &str) -> impl Iterator<Item = Account<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let (_comment, home) = (fields.next()?, fields.next()?);
        (!name.is_empty()).then_some(Account { name, uid, gid, home })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbad line\nevil:x:nonsense:0::/:\nweb:x:33:44:www:/var/www:/bin/sh\n"
                .into(),
            group: "root:x:0:\nweb:x:44:\nstaff:x:50:web,other\n".into(),
        }
    }

    fn find(security: cri::LinuxContainerSecurityContext, image: &str) -> Result<(u32, u32, Vec<u32>)> {
        resolve(&security, image, &accounts()).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn the_image_names_a_user_in_every_form() {
        for (image, want) in [
            ("", (0, 0, vec![0])),
            ("web", (33, 44, vec![44, 50])),
            ("33", (33, 44, vec![44, 50])),
            ("1000", (1000, 0, vec![0])),
            ("web:staff", (33, 50, vec![50])),
            ("1000:2000", (1000, 2000, vec![2000])),
        ] {
            assert_eq!(find(Default::default(), image).unwrap(), want, "{image:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let security = cri::LinuxContainerSecurityContext {
            run_as_user: Some(cri::Int64Value { value: 33 }),
            run_as_group: Some(cri::Int64Value { value: 7 }),
            supplemental_groups: vec![9, 9],
            supplemental_groups_policy: cri::SupplementalGroupsPolicy::Strict.into(),
            ..Default::default()
        };
        assert_eq!(find(security, "nobody:nogroup").unwrap(), (33, 7, vec![7, 9]));
    }

    #[test]
    fn an_odd_user_never_becomes_root() {
        for image in ["4294967296", "-1", "+0", "0x0", "18446744073709551616", "evil", "nosuch", "4294967295"]
        {
            assert!(find(Default::default(), image).is_err(), "{image:?}");
        }
    }

    #[test]
    fn a_group_needs_a_user() {
        let security = cri::LinuxContainerSecurityContext {
            run_as_group: Some(cri::Int64Value { value: 7 }),
            ..Default::default()
        };
        assert!(find(security, "web").is_err());
    }
}
