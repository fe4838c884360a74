// What asks for a token: events and actions. It is asked for once, and kept while the tab is open.

const KEY = "aqueduct-token";

/** The server wants a token, or another one. */
export class NeedsToken extends Error {}

let needed = false;

/** Whether the server asks for one. */
export const needsToken = (asks) => { needed = asks; };
export const token = () => sessionStorage.getItem(KEY);
export const keep = (text) => sessionStorage.setItem(KEY, text);

/** Asks the server; JSON comes back. */
export async function ask(path, body) {
  if (needed && !token()) throw new NeedsToken("");
  const headers = {};
  const used = token();
  if (used) headers.Authorization = "Bearer " + used;
  const options = { headers, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  if (answer.status === 401) {
    // Somebody may have given another one while this was under way.
    if (token() && token() !== used) return ask(path, body);
    sessionStorage.removeItem(KEY);
    throw new NeedsToken(used ? "that is not the token" : "");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? "the server answered " + answer.status);
  return said;
}
