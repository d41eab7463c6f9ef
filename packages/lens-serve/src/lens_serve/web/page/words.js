// Problems in plain words: what happened, and what to do.

const SAID = {
  0: "The server does not answer. Is it still running?",
  401: "This server wants an API key.",
  403: "The server declined to draw this.",
  404: "The server does not know this model.",
  413: "That is more text than the server takes.",
  429: "The server is busy just now.",
  500: "Something went wrong on the server.",
  503: "The server is not ready yet.",
  504: "The drawing would not have been ready in time.",
};

// What a code says more exactly than its status.
const CODES = {
  quota_exceeded: "Your key has drawn what it may for now.",
  concurrency: "Your key is drawing as much at once as it may.",
  draining: "The server is about to stop.",
  unavailable: "The server cannot draw just now.",
};

export function inWords(problem) {
  const title = CODES[problem.code] || SAID[problem.status] || (problem.status >= 500 ? SAID[500] : "The server cannot draw this as asked.");
  return { title, detail: problem.message === title ? "" : problem.message };
}

// "9 s", "1 min 20 s": whole seconds, rounded up, so that it never says 0 before the time has come.
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.ceil(milliseconds / 1000));
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
