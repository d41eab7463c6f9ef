// A drawing as a command and as a program. Keys stay out of both.

import { address, key } from "./api.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(request) {
  const lines = [`curl ${address("v1/images/generations")}`];
  if (key.get()) lines.push('  -H "Authorization: Bearer $LENS_API_KEY"');
  lines.push("  -H 'Content-Type: application/json'", `  -d ${quoted(JSON.stringify(request))}`);
  return `${lines.join(" \\\n")}\n`;
}

function inPython(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(inPython).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${inPython(item)}`).join(", ")}}`;
}

export function asPython(request) {
  const { lens, ...rest } = request;
  const named = Object.entries(rest).map(([name, value]) => `    ${name}=${inPython(value)},\n`);
  return `import base64
import os

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=os.environ.get("LENS_API_KEY", "none"))
answer = client.images.generate(
${named.join("")}    extra_body={"lens": ${inPython(lens)}},
)
for number, image in enumerate(answer.data):
    with open(f"picture-{number}.png", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
`;
}
