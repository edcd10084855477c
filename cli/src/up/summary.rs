//! What a person sees once the mesh is up: who is there, and what to try.
use super::{
    Page,
    mesh::Mesh,
    plan::{Key, Plan},
};
use std::{fmt::Write, path::Path, time::Duration};

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
    if let Page::At(address) = mesh.options().page {
        println!("In a browser: http://{address}/");
    }
}

/// What to try next: what was suggested, or one call by each of two callers; ends with how to stop.
pub fn print_next_steps(mesh: &Mesh, suggestions: &[(&str, &str)]) {
    println!("\nTry in another terminal:");
    let program = named(&mesh.options().program);
    for (pod, command) in suggestions {
        println!("  {program} exec {pod} -- {command}");
    }
    let calls = if suggestions.is_empty() { calls(&mesh.plan()) } else { Vec::new() };
    for (caller, url) in calls {
        // Without names of its own, a pod needs a program that knows ours.
        let client = if mesh.captures() { "curl -si" } else { "postern app call" };
        println!("  {program} exec {} -- {client} {url}", caller.name);
    }
    println!("  {program} status");
    if mesh.options().page == Page::Off {
        println!("  {program} dashboard");
    }
    println!("  edit a file in {} and see it applied", mesh.options().directory.display());
    println!("Ctrl-C stops everything and leaves nothing behind.");
}

/// Up to two callers with sidecars and a service of which they are not a part, best in another namespace.
fn calls(plan: &Plan) -> Vec<(Key, String)> {
    let callers = || plan.pods.values().filter(|pod| pod.injected).map(|pod| &pod.key);
    let reached = plan.services.values().filter_map(|service| {
        let port = service.ports.iter().find(|port| !port.udp)?;
        let is_part = |caller: &Key| port.endpoints.iter().any(|(pod, _)| pod == caller);
        let others: Vec<&Key> = callers().filter(|caller| !is_part(caller)).take(2).collect();
        let foreign = others.iter().filter(|caller| caller.namespace != service.key.namespace).count();
        Some((foreign, service, port.port, others))
    });
    let Some((_, service, port, others)) = reached.max_by_key(|(foreign, ..)| *foreign) else {
        return Vec::new();
    };
    let port = if port == 80 { String::new() } else { format!(":{port}") };
    let url = format!("http://{}.{}{port}/", service.key.name, service.key.namespace);
    others.into_iter().map(|caller| (caller.clone(), url.clone())).collect()
}

/// The program as one can type it here: by its name when the shell finds it, else by its path.
fn named(program: &Path) -> String {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("postern") == program));
    if found {
        return "postern".to_owned();
    }
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| program.strip_prefix(here).ok().map(Path::to_path_buf));
    below.as_deref().unwrap_or(program).display().to_string()
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
