//! What a person sees once the mesh is up: who is there, and what to try.
use super::mesh::Mesh;
use std::{fmt::Write, time::Duration};

/// A table of pods.
pub fn print(mesh: &Mesh, took: Duration) {
    let mut rows = vec![["POD", "IDENTITY", "ADDRESSES", "SIDECAR"].map(str::to_owned)];
    for pod in mesh.pods() {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        let sidecar = if pod.identity.is_some() { "yes" } else { "no" };
        rows.push([
            pod.key.to_string(),
            pod.identity.unwrap_or_else(|| "-".into()),
            addresses.join(" "),
            sidecar.into(),
        ]);
    }
    println!("{}", table(&rows));
    println!("Up in {:.1} s.", took.as_secs_f32());
}

/// What to try next; ends with how to stop.
pub fn print_next_steps(mesh: &Mesh) {
    println!("\nTry:");
    let pods = mesh.pods();
    if let Some(pod) = pods.iter().find(|p| p.identity.is_some()).or(pods.first()) {
        let services = mesh.plan();
        let service = services.services.values().find(|s| s.ports.iter().any(|p| !p.udp));
        let url = service.map(|service| {
            let port = service.ports.iter().find(|p| !p.udp).map_or(80, |p| p.port);
            let port = if port == 80 { String::new() } else { format!(":{port}") };
            format!("http://{}.{}{port}/", service.key.name, service.key.namespace)
        });
        let command = match url {
            Some(url) if mesh.captures() => format!("curl -si {url}"),
            // Without names of its own, a pod needs a program that knows ours.
            Some(url) => format!("postern app call {url}"),
            None => "env".to_owned(),
        };
        println!("  postern exec {} -- {command}", pod.key.name);
    }
    println!("  edit a file in {} and see it applied", mesh.options().directory.display());
    println!("Ctrl-C stops everything and leaves nothing behind.");
}

fn table(rows: &[[String; 4]]) -> String {
    let mut widths = [0; 4];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows =
            [["POD", "ID", "A", "S"], ["pay/api-0", "-", "10.244.0.2", "no"]].map(|r| r.map(str::to_owned));
        assert_eq!(table(&rows), "POD        ID  A           S\npay/api-0  -   10.244.0.2  no\n");
    }
}
