// TanStack AI: `node tanstack.mjs URL MODEL`. It knows OpenAI's models and their sizes alone.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { generateImage, generateVideo, getVideoJobStatus } from "@tanstack/ai";
import { createOpenaiImage, createOpenaiVideo } from "@tanstack/ai-openai";

const [url, model] = process.argv.slice(2);
const config = { baseURL: `${url}/v1` };
const quiet = { debug: false }; // else it prints what is raised, too
const images = createOpenaiImage(model, "unused", config);
const videos = createOpenaiVideo(model, "unused", config);
const isPng = (one) => Buffer.from(one.b64Json, "base64").subarray(1, 4).toString() === "PNG";
const part = (path, metadata) => ({
  type: "image",
  source: { type: "data", value: readFileSync(path).toString("base64"), mimeType: "image/png" },
  metadata,
});

const made = await generateImage({
  adapter: images, prompt: "a cat", numberOfImages: 2, size: "1024x1024",
});
assert.ok(made.images.length === 2 && made.images.every(isPng));
console.log("generateImage");

const edited = await generateImage({
  adapter: images,
  prompt: [
    { type: "text", content: "a dog" }, part("input.png"), part("mask.png", { role: "mask" }),
  ],
});
assert.ok(edited.images.every(isPng));
console.log("generateImage with a picture and a mask");

const prompt = [{ type: "text", content: "a cat" }, part("input.png")];
for (const request of [{ prompt: "a cat", size: "1280x720", duration: 4 }, { prompt }]) {
  const { jobId } = await generateVideo({ adapter: videos, ...request });
  let state;
  do state = await getVideoJobStatus({ adapter: videos, jobId });
  while (!["completed", "failed"].includes(state.status));
  assert.equal(state.status, "completed");
  const [type, data] = state.url.split(";base64,");
  assert.equal(type, "data:video/mp4");
  const bytes = Buffer.from(data, "base64");
  assert.ok(bytes.subarray(4, 8).toString() === "ftyp" && bytes.includes("moov"));
}
console.log("generateVideo, getVideoJobStatus, also with a picture");

let last;
const stream = { stream: true, pollingInterval: 50 };
for await (const event of generateVideo({ adapter: videos, prompt: "a cat", ...stream })) {
  last = event;
}
assert.equal(last.type, "RUN_FINISHED");
console.log("generateVideo({ stream: true })");

for (const [make, adapter] of [
  [generateImage, createOpenaiImage("none", "unused", config)],
  [generateVideo, createOpenaiVideo("none", "unused", config)],
]) {
  await assert.rejects(make({ adapter, prompt: "a cat", ...quiet }), /'none' does not exist/);
}
console.log("errors");
