// TanStack AI: `node tanstack.mjs URL MODEL`. It knows OpenAI's models and their sizes alone.
import assert from "node:assert/strict";
import { generateImage, generateVideo, getVideoJobStatus } from "@tanstack/ai";
import { createOpenaiImage, createOpenaiVideo } from "@tanstack/ai-openai";

const [url, model] = process.argv.slice(2);
const config = { baseURL: `${url}/v1` };
const image = await generateImage({
  adapter: createOpenaiImage(model, "unused", config), prompt: "a cat", numberOfImages: 1,
});
assert.ok(image.images[0].b64Json ?? image.images[0].url);
console.log("generateImage");
const adapter = createOpenaiVideo(model, "unused", config);
const { jobId } = await generateVideo({ adapter, prompt: "a cat" });
let state;
do state = await getVideoJobStatus({ adapter, jobId });
while (!["completed", "failed"].includes(state.status));
assert.equal(state.status, "completed");
console.log("generateVideo, getVideoJobStatus");
