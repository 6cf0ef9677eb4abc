//! `$(NAME)` in environments, commands and arguments. Pure.

/// Replaces references by what `value` has; what it does not have stays as it is written, and `$$` is a `$`.
pub(super) fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = reference(after) {
            match value(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
            rest = after;
        }
    }
    result + rest
}

/// The names that `text` refers to.
pub(super) fn names(text: &str) -> Vec<String> {
    let names = std::cell::RefCell::new(Vec::new());
    expand(text, |name| {
        names.borrow_mut().push(name.to_owned());
        None
    });
    names.into_inner()
}

/// The name in parentheses at the beginning, and what follows.
fn reference(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix('(')?.split_once(')')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_in_every_form() {
        let value = |name: &str| match name {
            "A" => Some("1"),
            "R" => Some("$(A)"),
            "E" => Some(""),
            _ => None,
        };
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)z", "x1y1z"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$(R)", "$(A)"),
            ("$(E)", ""),
            ("$(NOT)", "$(NOT)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$()", "$()"),
            ("a$$", "a$"),
            ("ä$(A)ö", "ä1ö"),
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
        assert_eq!(names("$(A)/$$(B)/$(C)"), ["A", "C"]);
    }
}
