// Server-sent events, read with fetch(): EventSource cannot send an Authorization header.

const FIRST_PAUSE = 0.5; // seconds before the second attempt. Each further pause is twice as long
const LONGEST_PAUSE = 15;

/** The response of a controller that is not 200. `message` is the one in its body. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Send a request with a token, or without one if it is "". Throws a Refusal, or TypeError if there is no response. */
export async function request(path, token, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  // Without credentials, a 401 does not open the browser's own window for a password.
  const response = await fetch(path, { ...options, headers, credentials: "omit", cache: "no-store", redirect: "error" });
  if (response.ok) return response;
  const text = await response.text();
  let message = `${response.status} ${response.statusText}`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // a load balancer's own response
  }
  throw new Refusal(response.status, message);
}

/** Yield the events of a response as {event, id, data}. */
async function* eventsOf(body) {
  let text = "";
  for await (const piece of piecesOf(body)) {
    const blocks = (text + piece).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = { event: "message", id: "", data: "" };
      for (const line of block.split("\n")) {
        const [, name, value] = /^([a-z]+): ?(.*)$/s.exec(line) ?? [];
        if (name in event) event[name] = value;
      }
      yield event;
    }
  }
}

/** Yield a response as pieces of text. Safari cannot iterate over a stream. */
async function* piecesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

/**
 * Follows a path until stop(), and connects again when the connection is lost.
 *
 * silence: seconds without a byte after which the connection counts as lost.
 * token: returns the token.
 * onEvent: gets the kind of an event and its data.
 * onState: gets {state, message, retryAt}. state: "connecting", "open", "waiting", or "denied", which ends the stream.
 *   message: why the connection was lost. "" at the first attempt.
 */
export class Stream {
  #stop = null;
  #lastId = "";

  constructor(path, { silence, token, onEvent, onState }) {
    Object.assign(this, { path, silence, token, onEvent, onState });
  }

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
  }

  /** Begin with the last events again at the next start. */
  rewind() {
    this.#lastId = "";
  }

  async #run(stopped) {
    let pause = FIRST_PAUSE;
    let message = ""; // why the last attempt has ended. It stays until the next one succeeds
    while (!stopped.aborted) {
      try {
        this.onState({ state: "connecting", message, retryAt: performance.now() });
        await this.#follow(stopped, () => (pause = FIRST_PAUSE));
        message = "The controller has ended the connection.";
      } catch (error) {
        if (stopped.aborted) return;
        message = error instanceof Refusal ? error.message : "The controller cannot be reached.";
        if (error.status === 401 || error.status === 403) {
          this.stop();
          this.onState({ state: "denied", message, status: error.status });
          return;
        }
      }
      if (stopped.aborted) return;
      const wait = pause * (0.5 + Math.random() / 2); // pages must not come back in step
      pause = Math.min(2 * pause, LONGEST_PAUSE);
      this.onState({ state: "waiting", message, retryAt: performance.now() + 1000 * wait });
      await sleep(wait, stopped);
    }
  }

  async #follow(stopped, onOpen) {
    const silent = new AbortController();
    const stop = () => silent.abort();
    stopped.addEventListener("abort", stop);
    let timer = setTimeout(stop, 1000 * this.silence);
    try {
      const headers = { accept: "text/event-stream" };
      if (this.#lastId) headers["last-event-id"] = this.#lastId;
      const response = await request(this.path, this.token(), { headers, signal: silent.signal });
      for await (const { event, id, data } of eventsOf(response.body)) {
        if (stopped.aborted) return;
        clearTimeout(timer);
        timer = setTimeout(stop, 1000 * this.silence);
        if (id) this.#lastId = id;
        onOpen();
        if (data) this.onEvent(event, JSON.parse(data));
        this.onState({ state: "open" });
      }
    } finally {
      clearTimeout(timer);
      stopped.removeEventListener("abort", stop);
    }
  }
}

function sleep(seconds, stopped) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    stopped.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
