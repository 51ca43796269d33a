// Loads the scripts of the page, or says why they are missing.
//
// During an upgrade, replicas of two versions serve behind one address. A replica has only the files of its own version,
// so this script is the only one that the page of another version may get. Keep it working with both.

const MESSAGE =
  "The page cannot be loaded. Replicas of two versions run behind this address, or the connection was lost. " +
  "Reload the page when all replicas run the same version: the command `controller replicas` lists them.";

const version = document.querySelector("meta[name=page-version]").content;
try {
  // A style sheet that was not found is an empty one. This script runs after it was loaded.
  if (!document.querySelector("link[rel=stylesheet]").sheet?.cssRules.length) throw new Error("The style sheet is missing.");
  await import(`./${version}/main.js`);
} catch (error) {
  const [navigation] = performance.getEntriesByType("navigation");
  if (navigation.type === "reload") {
    console.error(error);
    const text = document.createElement("p");
    text.setAttribute("role", "alert");
    text.textContent = MESSAGE;
    document.getElementById("page").replaceChildren(text);
  } else {
    location.reload(); // once: another replica may answer
  }
}
