//! Cedar: who may do what, compiled and validated against the program's own schema.
//!
//! A rule is named by its `@id("…")`, else by its file and line, and has a mode: `@mode("enforce")` (the default),
//! `@mode("shadow")` (decided and recorded, not acted on) or `@mode("off")`. Any error while a policy is evaluated denies.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    Policy, PolicyId, PolicySet, Request, RestrictedExpression, Schema, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::target::Action;
use crate::authenticate::Identity;
use crate::mistake::{Mistake, nearest};

/// The schema that every policy is validated against; `portcullis check --cedar-schema` prints it.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// What rules call the provenance log: `Log::"provenance"`.
pub const LOG: &str = "provenance";

/// What a policy may know of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name that callers write.
    pub name: Arc<str>,
    /// Whether the owner calls it public.
    pub public: bool,
    /// The tenants it is for.
    pub tenants: Vec<String>,
}

/// What a policy may know of the circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Circumstances {
    /// `api_key`, `jwt` or `certificate`.
    pub authentication: &'static str,
    /// Whether the connection has a verified client certificate.
    pub certificate: bool,
    /// Where the caller calls from.
    pub address: IpAddr,
}

/// What the policies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the caller may.
    pub allowed: bool,
    /// The rules that decided; empty where nothing permitted.
    pub rules: Arc<str>,
    /// The rules in shadow mode that would have decided otherwise.
    pub shadowed: Option<Arc<str>>,
}

/// Compiled policies.
pub struct Policies {
    enforced: PolicySet,
    /// The enforced and the shadowed ones together; none where no rule is in shadow.
    with_shadow: Option<PolicySet>,
    /// The enforced ones that speak of audits: every `forbid`, and of the others those that name their actions. A rule that permits
    /// whatever is asked of a model was not written to open everybody's receipts.
    of_audits: PolicySet,
    names: HashMap<PolicyId, Arc<str>>,
    types: Types,
    actions: HashMap<&'static str, EntityUid>,
    engine: Authorizer,
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Policies({} rules)", self.names.len())
    }
}

struct Types {
    caller: EntityTypeName,
    role: EntityTypeName,
    tenant: EntityTypeName,
    model: EntityTypeName,
    log: EntityTypeName,
}

/// The annotations that mean something here.
const OURS: [&str; 2] = ["id", "mode"];

/// A policy could not be evaluated; the decision is a denial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unevaluated(pub String);

impl Policies {
    /// Compiles and validates `text`, the content of `access.cedar`.
    ///
    /// # Errors
    /// Every mistake that Cedar's parser and validator find, each with its place.
    pub fn compile(text: &str, file: &str) -> Result<Self, Vec<Mistake>> {
        let schema = schema()?;
        let parsed = PolicySet::from_str(text).map_err(|errors| errors.iter().map(mistake).collect::<Vec<_>>())?;
        let validated = Validator::new(schema).validate(&parsed, ValidationMode::Strict);
        let mut mistakes: Vec<Mistake> = validated.validation_errors().map(mistake).collect();
        mistakes.extend(
            parsed.templates().map(|_| Mistake::of_file("a template is never linked: write a policy without `?principal` or `?resource`")),
        );

        let lines = Lines::of(text, &parsed, file);
        let (mut enforced, mut with_shadow, mut of_audits) = (PolicySet::new(), PolicySet::new(), PolicySet::new());
        let (mut names, mut shadows) = (HashMap::new(), 0);
        let mut seen = HashSet::new();
        for policy in parsed.policies() {
            let name: Arc<str> = policy.annotation("id").map_or_else(|| lines.name(policy), Arc::from);
            if !seen.insert(name.clone()) {
                mistakes.push(lines.mistake(policy, format!("two rules are called `{name}`; each @id must be its own")));
            }
            // Cedar lets a rule say anything of itself; what is almost one of ours is a slip, and the rule would bite that was to be tried.
            for (said, _) in policy.annotations().filter(|(said, _)| !OURS.contains(said)) {
                if let Some(meant) = nearest(said, OURS) {
                    mistakes
                        .push(lines.mistake(policy, format!("@{said} says nothing here: it is to be @{meant}, or called something else")));
                }
            }
            let enforce = match policy.annotation("mode") {
                None | Some("enforce") => true,
                Some("shadow") => false,
                Some("off") => continue,
                Some(other) => {
                    mistakes
                        .push(lines.mistake(policy, format!("@mode({other:?}) is not a mode: write \"enforce\", \"shadow\" or \"off\"")));
                    continue;
                }
            };
            names.insert(policy.id().clone(), name);
            shadows += usize::from(!enforce);
            let of_any = policy.effect() == Effect::Permit && policy.action_constraint() == ActionConstraint::Any;
            let sets = match (enforce, of_any) {
                (true, false) => vec![&mut with_shadow, &mut enforced, &mut of_audits],
                (true, true) => vec![&mut with_shadow, &mut enforced],
                (false, _) => vec![&mut with_shadow],
            };
            for set in sets {
                if let Err(error) = set.add(policy.clone()) {
                    mistakes.push(lines.mistake(policy, error.to_string()));
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let name = |text: &str| EntityTypeName::from_str(text).map_err(|error| vec![mistake(&error)]);
        let types =
            Types { caller: name("Caller")?, role: name("Role")?, tenant: name("Tenant")?, model: name("Model")?, log: name("Log")? };
        let action = name("Action")?;
        let actions = Action::ALL
            .into_iter()
            .map(|each| (each.as_str(), EntityUid::from_type_name_and_id(action.clone(), EntityId::new(each.as_str()))))
            .collect();
        let with_shadow = (shadows > 0).then_some(with_shadow);
        Ok(Self { enforced, with_shadow, of_audits, names, types, actions, engine: Authorizer::new() })
    }

    /// Judges one request.
    ///
    /// # Errors
    /// [`Unevaluated`] when Cedar could not evaluate a rule, a deny rule among them: nobody may then.
    pub fn judge(
        &self,
        who: &Identity,
        action: Action,
        resource: &Resource,
        circumstances: Circumstances,
    ) -> Result<Judgement, Unevaluated> {
        let (request, entities) = self.question(who, action, resource, circumstances).map_err(Unevaluated)?;
        let (allowed, rules) = self.decide(&request, &self.enforced, &entities)?;
        let shadowed = match &self.with_shadow {
            // A rule in shadow that cannot be evaluated is told of like one that decides otherwise: it must not bite.
            Some(all) => match self.decide(&request, all, &entities) {
                Ok((same, _)) if same == allowed => None,
                Ok((_, rules)) => Some(rules),
                Err(Unevaluated(error)) => Some(error.into()),
            },
            None => None,
        };
        Ok(Judgement { allowed, rules, shadowed })
    }

    /// Judges whether the caller may read any receipt. Rules in shadow are not asked.
    ///
    /// # Errors
    /// [`Unevaluated`] when Cedar could not evaluate a rule: nobody may then.
    pub fn judge_audit(&self, who: &Identity, circumstances: Circumstances) -> Result<Judgement, Unevaluated> {
        let log = Resource { name: LOG.into(), public: false, tenants: Vec::new() };
        let (request, entities) = self.question(who, Action::Audit, &log, circumstances).map_err(Unevaluated)?;
        let (allowed, rules) = self.decide(&request, &self.of_audits, &entities)?;
        Ok(Judgement { allowed, rules, shadowed: None })
    }

    fn decide(&self, request: &Request, policies: &PolicySet, entities: &Entities) -> Result<(bool, Arc<str>), Unevaluated> {
        let response = self.engine.is_authorized(request, policies, entities);
        // Cedar skips a rule that errs, which would turn an erring `forbid` into a pass.
        if let Some(error) = response.diagnostics().errors().next() {
            let AuthorizationError::PolicyEvaluationError(erred) = error;
            let name = self.names.get(erred.policy_id()).map_or("a rule", |name| name);
            return Err(Unevaluated(format!("{name}: {}", erred.inner())));
        }
        let mut rules: Vec<&str> = response.diagnostics().reason().filter_map(|id| self.names.get(id)).map(|name| &**name).collect();
        rules.sort_unstable();
        Ok((response.decision() == Decision::Allow, rules.join(",").into()))
    }

    fn question(
        &self,
        who: &Identity,
        action: Action,
        resource: &Resource,
        circumstances: Circumstances,
    ) -> Result<(Request, Entities), String> {
        let uid = |kind: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id));
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let caller = uid(&self.types.caller, &who.who.caller);
        let kind = if action == Action::Audit { &self.types.log } else { &self.types.model };
        let resource_uid = uid(kind, &resource.name);

        let mut parents: HashSet<EntityUid> = who.roles.iter().map(|role| uid(&self.types.role, role)).collect();
        if !who.who.tenant.is_empty() {
            parents.insert(uid(&self.types.tenant, &who.who.tenant));
        }
        let mut entities: Vec<Entity> = parents.iter().map(|parent| Entity::with_uid(parent.clone())).collect();
        let attributes = HashMap::from([("tenant".to_owned(), text(&who.who.tenant)), ("tier".to_owned(), text(&who.who.tier))]);
        entities.push(Entity::new(caller.clone(), attributes, parents).map_err(|error| error.to_string())?);
        let attributes = HashMap::from([
            ("public".to_owned(), RestrictedExpression::new_bool(resource.public)),
            ("tenants".to_owned(), RestrictedExpression::new_set(resource.tenants.iter().map(|tenant| text(tenant)))),
        ]);
        entities.push(Entity::new(resource_uid.clone(), attributes, HashSet::new()).map_err(|error| error.to_string())?);

        let context = Context::from_pairs([
            ("authentication".to_owned(), text(circumstances.authentication)),
            ("certificate".to_owned(), RestrictedExpression::new_bool(circumstances.certificate)),
            ("address".to_owned(), RestrictedExpression::new_ip(circumstances.address.to_string())),
        ])
        .map_err(|error| error.to_string())?;
        let action = self.actions.get(action.as_str()).cloned().ok_or("the schema lacks an action")?;
        let request = Request::new(caller, action, resource_uid, context, None).map_err(|error| error.to_string())?;
        let entities = Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        Ok((request, entities))
    }
}

fn schema() -> Result<Schema, Vec<Mistake>> {
    Schema::from_cedarschema_str(SCHEMA).map(|(schema, _)| schema).map_err(|error| vec![Mistake::of_file(error.to_string())])
}

/// Cedar's own words, its help, and the place it points at.
fn mistake(error: &(impl Diagnostic + ?Sized)) -> Mistake {
    let span = error.labels().and_then(|mut labels| labels.next()).map(|label| label.offset()..label.offset() + label.len());
    let help = error.help().map(|help| format!("; {help}")).unwrap_or_default();
    Mistake { file: None, span, place: None, what: format!("{error}{help}"), absent: false }
}

/// Where each policy stands in the text: Cedar numbers policies in the order of the file.
struct Lines<'a> {
    file: &'a str,
    starts: HashMap<PolicyId, (usize, usize)>,
}

impl<'a> Lines<'a> {
    fn of(text: &str, policies: &PolicySet, file: &'a str) -> Self {
        let mut starts = HashMap::new();
        // A policy's own text is a slice of the file, so its first occurrence after the one before it is its place.
        let mut numbered: Vec<(&PolicyId, String)> = policies.policies().map(|policy| (policy.id(), policy.to_string())).collect();
        numbered.sort_by_key(|(id, _)| id.to_string().trim_start_matches("policy").parse::<usize>().unwrap_or(usize::MAX));
        let mut from = 0;
        for (id, source) in numbered {
            if let Some(at) = text[from..].find(source.trim()) {
                let start = from + at;
                starts.insert(id.clone(), (start, text[..start].matches('\n').count() + 1));
                from = start + source.trim().len();
            }
        }
        Self { file, starts }
    }

    fn name(&self, policy: &Policy) -> Arc<str> {
        match self.starts.get(policy.id()) {
            Some((_, line)) => format!("{}:{line}", self.file).into(),
            None => format!("{}:{}", self.file, policy.id()).into(),
        }
    }

    fn mistake(&self, policy: &Policy, what: String) -> Mistake {
        let span = self.starts.get(policy.id()).map(|(start, _)| *start..*start + 1);
        Mistake { file: None, span, place: None, what, absent: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::Who;

    fn identity(tenant: &str, roles: &[&str]) -> Identity {
        let who = Who { caller: "api_key:a".into(), tenant: tenant.into(), tier: "".into(), method: "api_key" };
        Identity { who: Arc::new(who), roles: roles.iter().map(|role| Arc::from(*role)).collect() }
    }

    fn model(tenants: &[&str]) -> Resource {
        Resource { name: "chat".into(), public: false, tenants: tenants.iter().map(|tenant| (*tenant).to_owned()).collect() }
    }

    const HERE: Circumstances =
        Circumstances { authentication: "api_key", certificate: false, address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) };

    const EXAMPLE: &str = r#"
permit (principal in Role::"app", action in [Action::"chat", Action::"embed"], resource)
when { resource.public || resource.tenants.contains(principal.tenant) };

@id("not from afar")
forbid (principal, action, resource) unless { context.address.isLoopback() };
"#;

    #[test]
    fn the_example_of_the_documentation_judges_as_it_reads() {
        let policies = Policies::compile(EXAMPLE, "access.cedar").unwrap();
        let judge = |who: &Identity, action, at| policies.judge(who, action, &model(&["acme"]), at).unwrap();
        let app = identity("acme", &["app"]);
        let allowed = judge(&app, Action::Chat, HERE);
        assert!(allowed.allowed);
        assert_eq!(&*allowed.rules, "access.cedar:2");
        assert!(!judge(&app, Action::Infer, HERE).allowed);
        assert!(!judge(&identity("other", &["app"]), Action::Chat, HERE).allowed);
        assert!(!judge(&identity("acme", &[]), Action::Chat, HERE).allowed);
        let afar = Circumstances { address: "192.0.2.1".parse().unwrap(), ..HERE };
        let denied = judge(&app, Action::Chat, afar);
        assert!(!denied.allowed);
        assert_eq!(&*denied.rules, "not from afar");
    }

    #[test]
    fn nobody_audits_but_by_a_rule_that_names_it() {
        let audits = |text: &str, roles: &[&str]| {
            Policies::compile(text, "access.cedar").unwrap().judge_audit(&identity("acme", roles), HERE).unwrap().allowed
        };
        assert!(!audits("", &["auditor"]));
        assert!(!audits(EXAMPLE, &["app"]));
        // Rules that were written before there were audits read on, and permit none.
        assert!(!audits("permit (principal, action, resource);", &["auditor"]));
        assert!(!audits(
            r#"permit (principal in Role::"app", action, resource) when { resource.public || resource.tenants.contains(principal.tenant) };"#,
            &["app"]
        ));
        let named = r#"permit (principal in Role::"auditor", action == Action::"audit", resource);"#;
        assert!(audits(named, &["auditor"]) && !audits(named, &["app"]));
        assert!(audits(r#"permit (principal, action in [Action::"audit", Action::"chat"], resource == Log::"provenance");"#, &[]));
        assert!(!audits(r#"permit (principal, action == Action::"audit", resource == Log::"another");"#, &[]));
        assert!(!audits(&format!("{named}\nforbid (principal, action, resource) when {{ !context.certificate }};"), &["auditor"]));
        assert!(!audits(&format!("@mode(\"shadow\") {named}"), &["auditor"]));
        let erring = r#"permit (principal, action == Action::"audit", resource) when { 9223372036854775807 + 1 == 0 };"#;
        assert!(Policies::compile(erring, "access.cedar").unwrap().judge_audit(&identity("acme", &[]), HERE).is_err());
    }

    #[test]
    fn a_rule_that_errs_denies() {
        // An overflow is the one error that strict validation lets through.
        let text = r#"permit (principal, action, resource);
forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };"#;
        let policies = Policies::compile(text, "access.cedar").unwrap();
        assert!(policies.judge(&identity("a", &[]), Action::Chat, &model(&[]), HERE).is_err());
    }

    #[test]
    fn shadow_decides_and_does_not_act_and_off_does_neither() {
        let text = r#"permit (principal, action, resource);
@id("later") @mode("shadow") forbid (principal, action == Action::"chat", resource);
@mode("off") forbid (principal, action, resource);"#;
        let policies = Policies::compile(text, "access.cedar").unwrap();
        let judged = policies.judge(&identity("a", &[]), Action::Chat, &model(&[]), HERE).unwrap();
        assert!(judged.allowed);
        assert_eq!(judged.shadowed.as_deref(), Some("later"));
        assert_eq!(policies.judge(&identity("a", &[]), Action::Infer, &model(&[]), HERE).unwrap().shadowed, None);
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, part) in [
            ("permit (principal, action, resource) when { resource.pubic };", "pubic"),
            ("permit (principal, action == Action::\"talk\", resource);", "talk"),
            ("permit (principal action, resource);", "unexpected"),
            ("@mode(\"maybe\") permit (principal, action, resource);", "maybe"),
            ("@mod(\"shadow\") forbid (principal, action, resource);", "it is to be @mode"),
            ("@Mode(\"off\") forbid (principal, action, resource);", "it is to be @mode"),
            ("@id(\"a\") permit (principal, action, resource);\n@id(\"a\") permit (principal, action, resource);", "`a`"),
        ] {
            let mistakes = Policies::compile(text, "access.cedar").unwrap_err();
            assert!(mistakes.iter().any(|mistake| mistake.what.contains(part) && mistake.span.is_some()), "{text}: {mistakes:?}");
        }
    }

    #[test]
    fn an_empty_file_denies_everybody() {
        let policies = Policies::compile("", "access.cedar").unwrap();
        assert!(!policies.judge(&identity("a", &["app"]), Action::Chat, &model(&["a"]), HERE).unwrap().allowed);
    }
}
