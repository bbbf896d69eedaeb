//! What a session of the S3 server may do: the policy that AssumeRole was given, parsed and asked.
//!
//! Called by `sessions`. The part of IAM's language that says which actions are allowed on names that begin in some way, and which prefixes may be listed; what else a policy
//! may say is refused when the session is made, so that nothing is let through because it was not understood.

use std::collections::BTreeMap;

use serde::Deserialize;

/// An accepted policy.
#[derive(Debug, Clone)]
pub struct Policy(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    actions: Vec<String>,
    resources: Vec<Pattern>,
    /// What `s3:prefix` must be like; empty: anything.
    prefixes: Vec<Pattern>,
}

/// A text, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    literal: String,
    is_beginning: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: String,
    statement: Vec<Statement>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    effect: String,
    action: Several,
    resource: Several,
    #[serde(default)]
    condition: BTreeMap<String, BTreeMap<String, Several>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Several {
    One(String),
    All(Vec<String>),
}

impl Several {
    fn patterns(self) -> Result<Vec<Pattern>, String> {
        self.texts().iter().map(|text| Pattern::parse(text)).collect()
    }

    fn texts(self) -> Vec<String> {
        match self {
            Several::One(text) => vec![text],
            Several::All(texts) => texts,
        }
    }
}

impl Policy {
    /// From its JSON.
    ///
    /// # Errors
    /// What is not understood.
    pub fn parse(text: &str) -> Result<Policy, String> {
        let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if document.version != "2012-10-17" {
            return Err("the Version must be 2012-10-17".to_owned());
        }
        document.statement.into_iter().map(Rule::of).collect::<Result<_, _>>().map(Policy)
    }

    /// Whether `action` is allowed on `resource`; `prefix` is what a list asks for.
    pub fn allows(&self, action: &str, resource: &str, prefix: Option<&str>) -> bool {
        let is_met = |rule: &Rule| {
            rule.prefixes.is_empty() || prefix.is_some_and(|prefix| rule.prefixes.iter().any(|like| like.takes(prefix)))
        };
        self.0.iter().any(|rule| {
            rule.actions.iter().any(|allowed| allowed == action)
                && rule.resources.iter().any(|like| like.takes(resource))
                && is_met(rule)
        })
    }
}

impl Rule {
    fn of(statement: Statement) -> Result<Rule, String> {
        if statement.effect != "Allow" {
            return Err(format!("the Effect {} is not known here", statement.effect));
        }
        let actions = statement.action.texts();
        if let Some(odd) = actions.iter().find(|action| action.contains(['*', '?'])) {
            return Err(format!("the Action {odd} is not known here"));
        }
        let mut prefixes = Vec::new();
        for (operator, keys) in statement.condition {
            for (key, values) in keys {
                if (operator.as_str(), key.as_str()) != ("StringLike", "s3:prefix") {
                    return Err(format!("the Condition {operator} of {key} is not known here"));
                }
                prefixes.extend(values.patterns()?);
            }
        }
        Ok(Rule { actions, resources: statement.resource.patterns()?, prefixes })
    }
}

impl Pattern {
    /// `*` only at the end; `${*}`, `${?}` and `${$}` are these characters themselves.
    fn parse(text: &str) -> Result<Pattern, String> {
        let bad = || format!("the pattern {text} is not known here");
        let (mut literal, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(['*', '?', '$']) {
            literal.push_str(&rest[..at]);
            rest = &rest[at..];
            let escaped = ["${*}", "${?}", "${$}"].into_iter().find(|escape| rest.starts_with(escape));
            match escaped {
                Some(escape) => {
                    literal.push_str(&escape[2..3]);
                    rest = &rest[escape.len()..];
                }
                None if rest == "*" => return Ok(Pattern { literal, is_beginning: true }),
                None => return Err(bad()),
            }
        }
        literal.push_str(rest);
        Ok(Pattern { literal, is_beginning: false })
    }

    fn takes(&self, text: &str) -> bool {
        if self.is_beginning { text.starts_with(&self.literal) } else { text == self.literal }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_allowed() {
        let policy = Policy::parse(
            r#"{"Version":"2012-10-17","Statement":[
                {"Effect":"Allow","Action":["s3:GetObject"],"Resource":"arn:aws:s3:::b/a${*}/*"},
                {"Effect":"Allow","Action":"s3:ListBucket","Resource":"arn:aws:s3:::b","Condition":{"StringLike":{"s3:prefix":"a${*}/*"}}}]}"#,
        )
        .unwrap();
        assert!(policy.allows("s3:GetObject", "arn:aws:s3:::b/a*/x", None));
        assert!(policy.allows("s3:ListBucket", "arn:aws:s3:::b", Some("a*/x")));
        for (action, resource, prefix) in [
            ("s3:GetObject", "arn:aws:s3:::b/ab/x", None),
            ("s3:GetObject", "arn:aws:s3:::c/a*/x", None),
            ("s3:PutObject", "arn:aws:s3:::b/a*/x", None),
            ("s3:ListBucket", "arn:aws:s3:::b", Some("")),
            ("s3:ListBucket", "arn:aws:s3:::b", None),
            ("s3:ListBucket", "arn:aws:s3:::b/a*/x", Some("a*/")),
        ] {
            assert!(!policy.allows(action, resource, prefix), "{action} {resource} {prefix:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let statement = |more: &str| format!(r#"{{"Version":"2012-10-17","Statement":[{{{more}}}]}}"#);
        for odd in [
            r#""Effect":"Deny","Action":"s3:GetObject","Resource":"r""#,
            r#""Effect":"Allow","Action":"s3:*","Resource":"r""#,
            r#""Effect":"Allow","Action":"s3:GetObject","Resource":"a*b""#,
            r#""Effect":"Allow","Action":"s3:GetObject","NotResource":"r""#,
            r#""Effect":"Allow","Action":"s3:GetObject","Resource":"${aws:username}""#,
            r#""Effect":"Allow","Action":"s3:GetObject","Resource":"r","Condition":{"StringNotLike":{"s3:prefix":"x"}}"#,
        ] {
            assert!(Policy::parse(&statement(odd)).is_err(), "{odd}");
        }
    }
}
