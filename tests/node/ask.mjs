// What transformers.js answers with an exported folder: node ask.mjs FOLDER QUESTIONS, both absolute.
//
// QUESTIONS: a JSON list of {"image", "question", "max_tokens"}. Prints a list of greedy tokens for each.
import fs from "node:fs";
import {
  AutoImageProcessor,
  AutoTokenizer,
  LlavaForConditionalGeneration,
  RawImage,
  env,
} from "@huggingface/transformers";

env.allowRemoteModels = false;
env.localModelPath = "/";
const [folder, questions] = process.argv.slice(2);
const read = (name) => fs.readFileSync(`${folder}/${name}`, "utf8");
const config = JSON.parse(read("config.json"));
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const pictures = await AutoImageProcessor.from_pretrained(folder);
const model = await LlavaForConditionalGeneration.from_pretrained(folder, {
  device: "cpu",
  dtype: "fp32", // which file is loaded; whatever the weights are, it has no suffix
  subfolder: "",
  use_external_data_format: true,
});

const answers = [];
for (const { image, question, max_tokens } of JSON.parse(fs.readFileSync(questions, "utf8"))) {
  const { pixel_values } = await pictures([await RawImage.read(image)]);
  const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text: question }] }];
  const written = tokenizer.apply_chat_template(messages, {
    add_generation_prompt: true,
    chat_template: read("chat_template.jinja"),
    tokenize: false,
  });
  // Its own processor for this family gives a picture one token too many where the class token is left out.
  const prompt = written.replace("<image>", "<image>".repeat(config.image_seq_length));
  const inputs = tokenizer(prompt);
  const tokens = await model.generate({ ...inputs, pixel_values, max_new_tokens: max_tokens, do_sample: false });
  answers.push(tokens.tolist()[0].slice(inputs.input_ids.dims.at(-1)).map(Number));
}
process.stdout.write(JSON.stringify(answers));
