//! `podhold image ls` and `inspect`.

use podhold_proto::images::{Image, ListRequest};
use serde_json::{Value, json};

use super::client::{Client, said};
use crate::{cli::Failure, output};

#[derive(Debug, clap::Args)]
pub(super) struct ListArguments {
    /// Print ids only
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct InspectArguments {
    /// Their references or ids
    #[arg(required = true)]
    names: Vec<String>,
    /// Print JSON, which is the only form there is
    #[arg(long)]
    json: bool,
}

pub(super) async fn list(mut client: Client, arguments: &ListArguments) -> Result<(), Failure> {
    let images = ask(&mut client, "").await?;
    if arguments.json {
        return print(&images.iter().map(brief).collect());
    }
    if arguments.quiet {
        for image in images {
            output::line(format_args!("{}", image.id))?;
        }
        return Ok(());
    }
    output::line(format_args!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE"))?;
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(13).collect();
        let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("<none>")) {
            output::line(format_args!("{name:<60} {id:<20} {size:>10}"))?;
        }
    }
    Ok(())
}

pub(super) async fn inspect(mut client: Client, arguments: &InspectArguments) -> Result<(), Failure> {
    let mut found = Vec::new();
    for name in &arguments.names {
        if name.is_empty() {
            return Err(Failure("the name of an image is empty; podhold image ls lists all".to_owned()));
        }
        for image in ask(&mut client, name).await? {
            let mut value = brief(&image);
            value["layers"] = json!(image.layers);
            value["config"] = serde_json::from_str(&image.config)?;
            found.push(value);
        }
    }
    print(&Value::Array(found))
}

/// The images of a name, or all.
async fn ask(client: &mut Client, name: &str) -> Result<Vec<Image>, Failure> {
    let request = ListRequest { name: name.to_owned() };
    let mut answer = client.list(request).await.map_err(|status| said(&status))?.into_inner();
    let mut images = Vec::new();
    while let Some(image) = answer.message().await.map_err(|status| said(&status))? {
        images.push(image);
    }
    Ok(images)
}

fn brief(image: &Image) -> Value {
    json!({
        "id": image.id, "tags": image.tags, "digests": image.digests, "size": image.size, "pinned": image.pinned,
    })
}

fn print(value: &Value) -> Result<(), Failure> {
    output::line(format_args!("{}", serde_json::to_string_pretty(value)?))?;
    Ok(())
}
