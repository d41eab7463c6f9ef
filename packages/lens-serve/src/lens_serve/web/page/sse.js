// Server-sent events out of the body of an answer. EventSource can neither POST nor send a key.

// Each event as {data} and each comment as {comment}, whatever the pieces in which their bytes arrive.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event without its empty line is not one
      rest += value;
      if (!value.includes("\n")) continue; // a picture is one line of megabytes: it is split once
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { data: data.join("\n") };
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line.startsWith(":")) {
          yield { comment: line.slice(1).trim() };
        }
      }
    }
  } finally {
    // Leaving the loop early is how a drawing is cancelled.
    await reader.cancel().catch(() => {});
  }
}
