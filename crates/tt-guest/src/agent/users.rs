//! Users and groups out of `/etc/passwd` and `/etc/group`, read here because a static program has no name service.

use std::fs;
use std::io;

/// A user as a program needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
}

/// Finds a user by name or number. Without `/etc/passwd` there is still root.
pub fn find(wanted: &str) -> io::Result<Option<User>> {
    let passwd = read("/etc/passwd")?;
    let Some(mut user) = find_in(&passwd, wanted) else {
        return Ok(matches!(wanted, "root" | "0").then(root));
    };
    user.groups = groups_in(&read("/etc/group")?, &user);
    Ok(Some(user))
}

/// A user that `/etc/passwd` does not know: a number and nothing else, in root's group, as Docker has it.
pub fn unknown(uid: u32) -> User {
    User { name: uid.to_string(), uid, gid: 0, home: "/".to_owned(), ..root() }
}

/// The number of a group, found by name; a number need not be in `/etc/group`.
pub fn find_group(wanted: &str) -> io::Result<Option<u32>> {
    Ok(find_group_in(&read("/etc/group")?, wanted).or_else(|| wanted.parse().ok()))
}

fn read(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn root() -> User {
    let (name, home, shell) = ("root".to_owned(), "/root".to_owned(), "/bin/sh".to_owned());
    User { name, uid: 0, gid: 0, home, shell, groups: vec![0] }
}

fn find_in(passwd: &str, wanted: &str) -> Option<User> {
    let users = || passwd.lines().filter_map(parse);
    users().find(|user| user.name == wanted).or_else(|| {
        let uid: u32 = wanted.parse().ok()?;
        users().find(|user| user.uid == uid)
    })
}

fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    if name.is_empty() || name.starts_with(['#', '+', '-']) {
        return None;
    }
    let or = |text: &str, fallback: &str| {
        if text.is_empty() { fallback.to_owned() } else { text.to_owned() }
    };
    let gid = gid.parse().ok()?;
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid,
        home: or(home, "/"),
        shell: or(shell.trim_end(), "/bin/sh"),
        groups: vec![gid],
    })
}

fn groups_in(group: &str, user: &User) -> Vec<u32> {
    let mut groups = user.groups.clone();
    for line in group.lines() {
        let fields: Vec<&str> = line.trim_end().split(':').collect();
        let [_, _, gid, members] = fields[..] else { continue };
        if let Ok(gid) = gid.parse()
            && members.split(',').any(|member| member == user.name)
            && !groups.contains(&gid)
        {
            groups.push(gid);
        }
    }
    groups
}

fn find_group_in(group: &str, wanted: &str) -> Option<u32> {
    let gid = |line: &str| {
        let mut fields = line.trim_end().split(':');
        (fields.next() == Some(wanted)).then(|| fields.nth(1)?.parse().ok())?
    };
    group.lines().find_map(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name() {
        let group = "root:x:0:\nbroken\nweb:x:33:www\nbad:x:one:\n";
        assert_eq!(find_group_in(group, "web"), Some(33));
        for wanted in ["33", "broken", "bad", "", "we"] {
            assert_eq!(find_group_in(group, wanted), None, "{wanted}");
        }
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment:x:5:5::/:/bin/sh\nbroken:x:1\n\
        bad:x:one:1::/:/bin/sh\n+nis::::::\nwww:x:33:34:web,,,:/var/www:\n1000:x:7:7::/seven:/bin/sh\nu:x:1000:1000:::\n";

    #[test]
    fn users_are_found_by_name_before_number() {
        assert_eq!(find_in(PASSWD, "root").unwrap().shell, "/bin/bash");
        let www = find_in(PASSWD, "www").unwrap();
        assert_eq!(
            (www.uid, www.gid, www.home.as_str(), www.shell.as_str()),
            (33, 34, "/var/www", "/bin/sh")
        );
        assert_eq!(find_in(PASSWD, "33"), Some(www));
        assert_eq!(find_in(PASSWD, "1000").unwrap().home, "/seven");
        assert_eq!(find_in(PASSWD, "u").unwrap().home, "/");
    }

    #[test]
    fn what_is_no_user_is_passed_over() {
        for wanted in ["broken", "bad", "# comment", "+nis", "", "nobody", "-1", "99999999999"] {
            assert_eq!(find_in(PASSWD, wanted), None, "{wanted}");
        }
    }

    #[test]
    fn groups_are_collected_once() {
        let www = find_in(PASSWD, "www").unwrap();
        let group =
            "a:x:1:www\nb:x:2:x,www,y\nc:x:3:wwww\nd:x:34:www\nbroken:x\ne:x:five:www\nf:x:1:www\n";
        assert_eq!(groups_in(group, &www), [34, 1, 2]);
    }
}
