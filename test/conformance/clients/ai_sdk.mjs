// Vercel's AI SDK: `node ai_sdk.mjs URL MODEL`.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";

const [url, model] = process.argv.slice(2);
const provider = createOpenAI({ baseURL: `${url}/v1`, apiKey: "unused" });
const { images } = await generateImage({
  model: provider.image(model), prompt: "a cat", n: 2, size: "64x64",
});
assert.deepEqual(images.map((one) => one.mediaType), ["image/png", "image/png"]);
console.log("generateImage");
const edited = await generateImage({
  model: provider.image(model), size: "64x64",
  prompt: { text: "a dog", images: [images[0].uint8Array] },
});
assert.equal(edited.image.mediaType, "image/png");
console.log("generateImage with a picture");
await assert.rejects(
  generateImage({ model: provider.image(model), prompt: "a cat", size: "1x1", maxRetries: 0 }),
  (failure) => failure.data.error.param === "size",
);
console.log("errors");
