//! What opens a cluster and how bytes travel there, from arguments and configuration.

use std::path::Path;

use rowmill::Diagnostics;
use rowmill_wire::handshake::{Handshake, Submitter, TenantName, Token};
use rowmill_wire::transport::{TlsFiles, Transport, TransportError};

use super::{TOKEN_VARIABLE, environment, usage};
use crate::settings::Settings;

/// The token in a file, or else in the environment. Never on the command line, where everybody sees it.
pub(super) fn token(file: Option<&Path>) -> Result<Token, Diagnostics> {
    let help = "give it with --token-file, or in ROWMILL_CLUSTER_TOKEN; `openssl rand -hex 32` prints a good one";
    let text = match file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            let message = format!("the token file {} cannot be read: {error}", path.display());
            environment("RM0703", message, "check the path and who owns the file")
        })?,
        None => std::env::var(TOKEN_VARIABLE).map_err(|_| usage("the cluster's token is missing", help))?,
    };
    Token::try_new(&text).map_err(|error| usage(error.to_string(), help))
}

/// The handshake of a client.
pub(super) fn client(token: Token, settings: &Settings) -> Result<Handshake, Diagnostics> {
    Ok(Handshake::new(token).with_transport(transport(settings)?))
}

/// The handshake of a process that serves: it knows who may submit.
pub(super) fn server(token: Token, settings: &Settings) -> Result<Handshake, Diagnostics> {
    let submitters = match &settings.config().cluster.submitters {
        None => Vec::new(),
        Some(secret) => {
            let text = secret.resolve(|name| std::env::var(name).ok(), |path| std::fs::read_to_string(path)).map_err(
                |error| environment("RM0703", format!("`cluster.submitters`: {error}"), "give a file that can be read"),
            )?;
            Submitter::read(&text).map_err(|error| {
                usage(format!("`cluster.submitters`: {error}"), "such as `openssl rand -hex 32` prints")
            })?
        }
    };
    Ok(client(token, settings)?.with_submitters(submitters))
}

/// Whom work is done for.
pub(super) fn tenant(settings: &Settings) -> Result<TenantName, Diagnostics> {
    let cluster = &settings.config().cluster;
    let text = match (&cluster.organisation, &cluster.team) {
        (None, None) => return Ok(TenantName::default()),
        (None, Some(_)) => return Err(usage("`cluster.team` is set and `cluster.organisation` is not", "set both")),
        (Some(organisation), None) => organisation.clone(),
        (Some(organisation), Some(team)) => format!("{organisation}/{team}"),
    };
    TenantName::parse(&text).map_err(|why| usage(format!("`cluster.organisation`: {why}"), "set it to a name"))
}

fn transport(settings: &Settings) -> Result<Transport, Diagnostics> {
    let cluster = &settings.config().cluster;
    let Some(ca) = &cluster.tls_ca else {
        if cluster.tls_certificate.is_some() || cluster.tls_key.is_some() {
            let message = "a certificate is configured for the cluster, and nobody who signed it";
            return Err(environment("RM0720", message, "set `cluster.tls.ca`"));
        }
        return Ok(if cluster.insecure { Transport::insecure() } else { Transport::default() });
    };
    let files = TlsFiles {
        ca: ca.clone(),
        certificate: cluster.tls_certificate.clone(),
        key: cluster.tls_key.clone(),
        mutual: cluster.tls_mutual,
    };
    Transport::tls(&files).map_err(|error| refused(&error))
}

/// A report that bytes may not, or cannot, travel as asked.
pub(super) fn refused(error: &TransportError) -> Diagnostics {
    environment("RM0720", error.to_string(), "docs/cluster.md shows how certificates are made")
}
