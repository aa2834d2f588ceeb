import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.WebSocket;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

/** The JDK's HttpClient as it comes: it offers HTTP/2 (h2c) with each call to a plain address. */
public class HttpClientCheck {
    static final HttpClient client = HttpClient.newHttpClient();

    static HttpRequest.Builder to(String url, String body, boolean isChunked) {
        var publisher = isChunked
            ? BodyPublishers.fromPublisher(BodyPublishers.ofString(body))
            : BodyPublishers.ofString(body);
        return HttpRequest.newBuilder(URI.create(url))
            .header("content-type", "application/json").POST(publisher);
    }

    static String say(String what, HttpRequest request, int wanted) throws Exception {
        HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
        if (answer.statusCode() != wanted)
            throw new AssertionError(what + ": " + answer.statusCode() + " " + answer.body());
        System.out.println(what);
        return answer.body();
    }

    public static void main(String[] args) throws Exception {
        String api = args[0], broker = args[1], predictor = args[2], model = args[3];
        String chat = "{\"model\": \"" + model + "\", \"max_tokens\": 3,"
            + " \"messages\": [{\"role\": \"user\", \"content\": \"Why?\"}]%s}";
        String line = "{\"url\": \"/v1/chat/completions\", \"body\": " + chat.formatted("") + "}";
        for (boolean isChunked : new boolean[] {false, true}) {
            String mark = isChunked ? " chunked" : "";
            say("chat" + mark, to(api + "/v1/chat/completions", chat.formatted(""), isChunked).build(), 200);
            say("job" + mark, to(api + "/v1/jobs", line, isChunked).build(), 202);
            String direct = chat.formatted("").replace(model, "seeded");
            say("direct" + mark, to(predictor + "/v1/chat/completions", direct, isChunked).build(), 200);
            say("event" + mark, to(broker, line, isChunked)
                .header("ce-specversion", "1.0").header("ce-type", "dev.torpor.inference.requested.v1")
                .header("ce-source", "/java").header("ce-id", "order" + mark.trim())
                .header("ce-model", model).build(), 202);
        }
        var stream = client.send(
            to(api + "/v1/chat/completions", chat.formatted(", \"stream\": true"), false).build(),
            BodyHandlers.ofLines());
        String lines = stream.body().collect(Collectors.joining("\n"));
        if (!lines.contains("data: {") || !lines.contains("data: [DONE]")) throw new AssertionError(lines);
        System.out.println("stream");

        String job = say("job to follow", to(api + "/v1/jobs", line, false).build(), 202);
        String id = job.replaceAll("(?s).*?\"id\": ?\"(job_[0-9a-f]+)\".*", "$1");
        var ended = new CompletableFuture<String>();
        client.newWebSocketBuilder()
            .buildAsync(URI.create(api.replace("http", "ws") + "/v1/jobs/" + id + "/ws"), new Listener(ended))
            .get(20, TimeUnit.SECONDS);
        if (!ended.get(60, TimeUnit.SECONDS).contains("completed")) throw new AssertionError(ended.get());
        System.out.println("socket");
    }

    record Listener(CompletableFuture<String> ended) implements WebSocket.Listener {
        static final StringBuilder all = new StringBuilder();

        public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean isLast) {
            all.append(data);
            socket.request(1);
            return null;
        }

        public CompletionStage<?> onClose(WebSocket socket, int status, String reason) {
            ended.complete(all.toString());
            return null;
        }

        public void onError(WebSocket socket, Throwable error) {
            ended.completeExceptionally(error);
        }
    }
}
