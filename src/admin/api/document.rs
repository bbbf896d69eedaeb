//! The OpenAPI 3.1 document, made from the table of routes and from the types that they take and answer.
//!
//! Each route carries what is told of it; nothing is written down twice. Served at `/v1/openapi.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;
use utoipa::{PartialSchema, ToSchema};

use super::fault::ProblemDocument;
use super::{Need, Route, routes};

type Schemas = Vec<(String, RefOr<Schema>)>;

/// What a body looks like.
#[derive(Clone, Copy)]
pub enum Shape {
    /// There is none.
    Nothing,
    /// Any JSON.
    Anything,
    /// A type.
    One(fn() -> String, fn(&mut Schemas)),
    /// A revision and all records of a type.
    Listed(fn() -> String, fn(&mut Schemas)),
}

/// What is told of a route.
pub struct Told {
    name: String,
    tag: &'static str,
    summary: String,
    takes: Option<Shape>,
    answers: Vec<(u16, &'static str, Shape)>,
    problems: Vec<u16>,
    asks: Vec<(&'static str, &'static str)>,
    is_guarded: bool,
}

impl Shape {
    /// No body.
    pub fn nothing() -> Shape {
        Shape::Nothing
    }

    /// Any JSON.
    pub fn anything() -> Shape {
        Shape::Anything
    }

    /// A `T`.
    pub fn of<T: ToSchema>() -> Shape {
        Shape::One(name::<T>, collect::<T>)
    }

    /// A list of `T`.
    pub fn listed<T: ToSchema>() -> Shape {
        Shape::Listed(name::<T>, collect::<T>)
    }

    fn schema(self) -> Option<Value> {
        let one = |name: fn() -> String| json!({"$ref": format!("#/components/schemas/{}", name())});
        match self {
            Shape::Nothing => None,
            Shape::Anything => Some(json!({})),
            Shape::One(name, _) => Some(one(name)),
            Shape::Listed(name, _) => Some(json!({
                "type": "object",
                "required": ["revision", "items"],
                "properties": {
                    "revision": {"type": "integer", "minimum": 0, "description": "The moment of the list."},
                    "items": {"type": "array", "items": one(name)},
                },
            })),
        }
    }
}

fn name<T: ToSchema>() -> String {
    T::name().into_owned()
}

fn collect<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((name::<T>(), <T as PartialSchema>::schema()));
    T::schemas(schemas);
}

impl Told {
    /// Of a route: the name of the operation, its section, a sentence.
    pub fn new(name: String, tag: &'static str, summary: &str) -> Told {
        let summary = summary.to_owned();
        let (answers, problems, asks) = (Vec::new(), Vec::new(), Vec::new());
        Told { name, tag, summary, takes: None, answers, problems, asks, is_guarded: false }
    }

    /// It takes a body.
    pub fn takes(self, shape: Shape) -> Told {
        Told { takes: Some(shape), ..self }
    }

    /// It answers JSON of this shape with this status.
    pub fn answers(self, status: u16, shape: Shape) -> Told {
        self.answers_as(status, super::JSON, shape)
    }

    /// It answers with a body of another media type.
    pub fn answers_as(mut self, status: u16, media_type: &'static str, shape: Shape) -> Told {
        self.answers.push((status, media_type, shape));
        self
    }

    /// It may answer problems with these statuses.
    pub fn problems(mut self, statuses: &[u16]) -> Told {
        self.problems.extend(statuses);
        self
    }

    /// It takes a parameter in the query.
    pub fn asks(mut self, parameter: &'static str, what: &'static str) -> Told {
        self.asks.push((parameter, what));
        self
    }

    /// It needs `If-Match`.
    pub fn guarded(self) -> Told {
        Told { is_guarded: true, ..self }
    }
}

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let routes = routes();
    let mut schemas = Schemas::new();
    collect::<ProblemDocument>(&mut schemas);
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in &routes {
        let shapes = route.told.takes.iter().chain(route.told.answers.iter().map(|(_, _, shape)| shape));
        for shape in shapes {
            if let Shape::One(_, collect) | Shape::Listed(_, collect) = shape {
                collect(&mut schemas);
            }
        }
        paths.entry(route.path).or_default().insert(route.method.as_str().to_lowercase(), operation(route));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay admin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Stores, volumes, groups and members of a Forebay deployment, and who may use them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.into_iter().collect::<BTreeMap<_, _>>(),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "An operator's token; where that is said, a token for the volume.",
                },
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let told = &route.told;
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|segment| {
            let name = segment.strip_prefix('{')?.strip_suffix('}')?;
            Some(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        })
        .collect();
    for (name, what) in &told.asks {
        parameters.push(json!({"name": name, "in": "query", "description": what, "schema": {"type": "string"}}));
    }
    if told.is_guarded {
        parameters.push(json!({
            "name": "If-Match", "in": "header", "required": true, "schema": {"type": "string"},
            "description": "The ETag of the record as it was read; * for whatever there is.",
        }));
    }
    let mut operation = json!({
        "operationId": told.name,
        "tags": [told.tag],
        "summary": told.summary,
        "description": need(route.need),
        "parameters": parameters,
        "responses": responses(route),
        "security": if route.need == Need::Nothing { json!([]) } else { json!([{"token": []}]) },
    });
    if let Some(schema) = told.takes.and_then(Shape::schema) {
        operation["requestBody"] = json!({"required": true, "content": {super::JSON: {"schema": schema}}});
    }
    operation
}

fn need(need: Need) -> &'static str {
    match need {
        Need::Nothing => "Takes no token.",
        Need::AnyToken => "Takes any token of this admin.",
        Need::Viewer => "Takes an operator's or a viewer's token.",
        Need::Operator => "Takes an operator's token.",
        Need::Volume => "Takes a token that opens the volume, or an operator's or a viewer's.",
        Need::Group => "Takes the token of a proxy of the group, and no other.",
    }
}

fn responses(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, media_type, shape) in &route.told.answers {
        let mut response = json!({"description": reason(*status)});
        if let Some(schema) = shape.schema() {
            response["content"] = json!({*media_type: {"schema": schema}});
        }
        responses.insert(status.to_string(), response);
    }
    let mut problems = route.told.problems.clone();
    if route.need != Need::Nothing {
        problems.extend([401, 403, 503]);
    }
    let problem = format!("#/components/schemas/{}", ProblemDocument::name());
    for status in problems {
        let content = json!({"application/problem+json": {"schema": {"$ref": problem}}});
        responses.insert(status.to_string(), json!({"description": reason(status), "content": content}));
    }
    Value::Object(responses)
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Other")
}
