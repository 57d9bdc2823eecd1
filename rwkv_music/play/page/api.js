// Requests to the server. Each one throws an Error whose message is the server's sentence.

async function checked(response) {
  if (response.ok) return response;
  let sentence = `The server answered with status ${response.status}.`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch { /* keep the general sentence */ }
  throw new Error(sentence);
}

async function request(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: start it again, then reload this page.");
  }
}

function json(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

export async function state() {
  return (await checked(await request("/api/state"))).json();
}

export async function start(kind) {
  return (await checked(await request("/api/start", json({ kind })))).json();
}

export async function upload(file) {
  const title = encodeURIComponent(file.name.replace(/\.[^.]*$/, ""));
  const options = { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file };
  return (await checked(await request(`/api/pieces?title=${title}`, options))).json();
}

export async function choose(piece) {
  return (await checked(await request("/api/choose", json({ piece })))).json();
}

// Calls onEvent with each event of a request until it is done. Aborting `signal` cancels the request.
export async function write(body, onEvent, signal) {
  const response = await checked(await request("/api/write", { ...json(body), signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      onEvent(event);
      if (event.done) return;
    }
    if (done) throw new Error("The server stopped before the music was complete: try again.");
  }
}
