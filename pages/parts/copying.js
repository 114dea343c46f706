// The button that copies the text that it stands on, wherever it is drawn (details.py).
const SAID_MILLISECONDS = 1500

function copyText(button) {
  const text = button.closest('[class*="st-key-verbatim-"]').querySelector('[data-testid="stText"]')
  const [icon, label] = button.children
  const say = (sign, words) => {
    icon.textContent = sign
    label.textContent = words
  }
  const answer = (sign, words) => {
    say(sign, words)
    setTimeout(say, SAID_MILLISECONDS, "content_copy", "Copy")
  }
  // A browser that does not let pages write the clipboard, or has none for this address, lets the reader.
  const select = () => {
    getSelection().selectAllChildren(text)
    answer("select_all", "Selected")
  }
  if (!navigator.clipboard) select()
  else navigator.clipboard.writeText(text.innerText).then(() => answer("check", "Copied"), select)
}
