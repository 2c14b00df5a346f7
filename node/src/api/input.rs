//! What a request carries, path, query and body: refused as a problem, described by its type.

use aide::OperationInput;
use aide::generate::GenContext;
use aide::openapi::{MediaType, Operation, RequestBody, SchemaObject};
use aide::operation::{ParamLocation, add_parameters, parameters_from_schema, set_body};
use axum::extract::{self, FromRequest, FromRequestParts, OptionalFromRequest, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;

use super::description;
use super::problem::{Rejected, malformed};
use crate::attach::Refusal;

/// The variable parts of a path.
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = extract::Path::from_request_parts(parts, state).await;
        path.map(|extract::Path(path)| Path(path)).map_err(|e| malformed(e.body_text()))
    }
}

impl<T: JsonSchema> OperationInput for Path<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameters = parameters_from_schema(context, fields::<T>(), ParamLocation::Path);
        add_parameters(context, operation, parameters);
        description::refuses(operation, StatusCode::BAD_REQUEST);
    }
}

/// What follows the question mark.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = extract::Query::from_request_parts(parts, state).await;
        query.map(|extract::Query(query)| Query(query)).map_err(|e| malformed(e.body_text()))
    }
}

impl<T: JsonSchema> OperationInput for Query<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let parameters = parameters_from_schema(context, fields::<T>(), ParamLocation::Query);
        add_parameters(context, operation, parameters);
        description::refuses(operation, StatusCode::BAD_REQUEST);
    }
}

/// A body of JSON.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Rejected;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejected> {
        let axum::Json(body) = <axum::Json<T> as FromRequest<S>>::from_request(request, state).await?;
        Ok(Body(body))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Body<T> {
    type Rejection = Rejected;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Rejected> {
        let body = <axum::Json<T> as OptionalFromRequest<S>>::from_request(request, state).await?;
        Ok(body.map(|axum::Json(body)| Body(body)))
    }
}

impl<T: JsonSchema> OperationInput for Body<T> {
    fn operation_input(context: &mut GenContext, operation: &mut Operation) {
        let mut generator = description::settings().for_deserialize().into_generator();
        let json_schema = generator.subschema_for::<T>();
        context.schema.definitions_mut().extend(generator.take_definitions(true));
        let schema = SchemaObject { json_schema, example: None, external_docs: None };
        let json = MediaType { schema: Some(schema), ..MediaType::default() };
        let content = [("application/json".to_owned(), json)].into_iter().collect();
        set_body(context, operation, RequestBody { content, required: true, ..RequestBody::default() });
        for status in
            [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNSUPPORTED_MEDIA_TYPE]
        {
            description::refuses(operation, status);
        }
    }
}

/// An object whose fields are parameters: what is not given is left out, never null.
fn fields<T: JsonSchema>() -> Schema {
    let settings = description::settings().for_deserialize().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    let properties = schema.ensure_object().get_mut("properties").and_then(|fields| fields.as_object_mut());
    for kinds in properties.into_iter().flatten().filter_map(|(_, field)| field.get_mut("type")) {
        if let Some([kind, _null]) = kinds.as_array().map(Vec::as_slice) {
            *kinds = kind.clone();
        }
    }
    schema
}
